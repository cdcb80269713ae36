"""Scorer worker: plain numbers about items, from a CLIP-family model or a user's function, behind the interface of
`RewardWorker`. A number has no distribution: q has no bins, sigma and entropy are 0.

Left out on purpose: rubrics and scales; what a number means is its source's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.serve import ServedSourceSection
from zr_ray.errors import JudgeError, RewardError
from zr_ray.models.clip_scorer import ClipScorer
from zr_ray.models.identity import judge_hash
from zr_ray.records import ItemFault, JudgeIdentity, Limits
from zr_ray.workers.limits import check_image, check_prompt
from zr_ray.workers.reward_items import ItemWorker, RewardAnswer, RewardItem, float_pixels, scaled
from zr_ray.workers.user_function import FunctionScorer, function_hash


class Scorer(Protocol):
    """Names, and numbers of them for images."""

    names: tuple[str, ...]
    differentiable: bool

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, D] in the order of `names`; nan: not scored.   images: [B, 3, H, W] float in [0, 1]."""


class ScorerWorker(ItemWorker):
    """Owns one scorer. Verbs as RewardWorker's: warm_up, check, answer."""

    what = "scorer"
    bins: tuple[float, ...] = ()
    control_tokens: tuple[str, ...] = ()

    def __init__(
        self, scorer: Scorer, name: str, limits: Limits = Limits(), device: str = "cpu", grad_items: int = 16
    ) -> None:
        """name: the source's. grad_items: images of one backward, which bounds memory."""
        super().__init__(grad_items)
        self.scorer, self.limits, self.device = scorer, limits, device
        self.dimensions, self.gives_gradient = scorer.names, scorer.differentiable
        if isinstance(scorer, ClipScorer):
            hashes = judge_hash(scorer.folder), f"cut_prompts={scorer.cut_prompts}", scorer.pixels.fingerprint
        else:
            hashes = function_hash(scorer.name) if isinstance(scorer, FunctionScorer) else name, "", ""
        self.identity = JudgeIdentity(name, *hashes)

    def warm_up(self) -> None:
        """Forward and backward of a CLIP scorer on a gray and a random image; a function is first called for an item,
        as only its author knows which images it takes. Raises JudgeError unless the scores are finite and differ."""
        if not isinstance(self.scorer, ClipScorer):
            return
        random = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
        items = [RewardItem(i, "a", self.dimensions, (1.0,) * len(self.dimensions)) for i in (random * 0 + 0.5, random)]
        answers = self.answer(items)
        for answer in answers:
            if isinstance(answer, ItemFault):
                raise JudgeError(
                    f"{self.scorer.folder} must answer its warm-up question, got {answer.status}: {answer.reason};"
                    " check its weights"
                )
        if np.array_equal(answers[0].mu, answers[1].mu):
            raise JudgeError(f"{self.scorer.folder} gives two different images one score; check its vision weights")

    def check(self, item: RewardItem) -> ItemFault | None:
        """What keeps an item from being scored, or None."""
        if item.weights is not None and not self.gives_gradient:
            return ItemFault("no_gradient", f"{self.identity.judge} gives scores only; ask for scores")
        fault = check_image(item.image, self.limits) or check_prompt(item.prompt, self.limits)
        if fault is None and isinstance(self.scorer, ClipScorer) and not self.scorer.cut_prompts:
            if (tokens := self.scorer.tokens(item.prompt)) > self.scorer.longest:
                return ItemFault(
                    "prompt_too_long",
                    f"{self.identity.judge} reads {self.scorer.longest} tokens of a prompt, got {tokens};"
                    " shorten it, or let it be cut (cut_prompts)",
                )
        return fault

    def _compute(self, items: list[RewardItem]) -> list[RewardAnswer | ItemFault]:
        gradient, started = items[0].weights is not None, time.perf_counter()
        images = torch.stack([float_pixels(item.image, torch.float32) for item in items]).to(self.device)
        images.requires_grad_(gradient)
        columns = [self.dimensions.index(name) for name in items[0].dimensions]
        with torch.set_grad_enabled(gradient):
            values = self.scorer(images, [item.prompt for item in items])[:, columns]
            forwarded = time.perf_counter()
            self.phases["forward"] += forwarded - started
            rewards, gradients = self._differentiate(values, images, items) if gradient else (None, None)
        self.phases["backward"] += time.perf_counter() - forwarded
        return self._rows(values.detach().float().cpu(), rewards, gradients)

    def _differentiate(self, values: Tensor, images: Tensor, items: list[RewardItem]) -> tuple[Tensor, Tensor]:
        weights = torch.tensor([item.weights for item in items], dtype=values.dtype, device=values.device)
        if not values.requires_grad:
            raise RewardError("autograd does not reach the images; return tensors that were computed from them")
        # an item that was not scored has no gradient, and must not make its neighbors' nan
        rewards = torch.where(values.isfinite(), weights * values, torch.zeros_like(values)).sum(-1)
        (gradients,) = torch.autograd.grad(rewards.sum(), images)
        return rewards.detach().cpu(), gradients.cpu()

    def _rows(self, values: Tensor, rewards: Tensor | None, gradients: Tensor | None) -> list[RewardAnswer | ItemFault]:
        rows: list[RewardAnswer | ItemFault] = []
        for i, value in enumerate(values):
            known = bool(value.isfinite().all()) and (gradients is None or bool(gradients[i].isfinite().all()))
            if not known:
                rows.append(ItemFault("failed", f"{self.identity.judge} answered nan for this image"))
                continue
            zero, mu = np.zeros(len(value), np.float32), value.numpy()
            extra = () if gradients is None else (float(rewards[i]), *scaled(gradients[i]))
            rows.append(RewardAnswer(np.zeros((len(value), 0), np.float32), mu, zero, zero, zero, *extra))
        return rows


def scorer_of(source: ServedSourceSection, dtype: str = "float32", device: str = "cpu") -> Scorer:
    """The scorer that a source configures. Raises JudgeError or ConfigError for one that is not
    there."""
    if source.function is not None:
        return FunctionScorer(source.function, source.scores, source.differentiable)
    return ClipScorer(clip_folder(source.clip or ""), getattr(torch, dtype), source.cut_prompts).to(device)


def clip_folder(path: str) -> Path:
    """The folder. Raises JudgeError unless a CLIPModel lies in it."""
    folder = Path(path).expanduser()
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError):
        kind = "no config.json"
    if kind != "clip":
        raise JudgeError(f"clip must be a folder of a transformers CLIPModel, got {folder} ({kind}); give one that is")
    return folder
