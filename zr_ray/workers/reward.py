"""Reward worker: one student that answers items from many callers at once, with distributions and pixel gradients.

An item's gradient does not depend on its neighbors: R is a sum over items, and no layer mixes them.
Left out on purpose: queues, HTTP and Ray, which are `serve.py`'s; reasoning, which is the teacher's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zr_ray.errors import JudgeError
from zr_ray.functional.aggregation import aggregate_reward, score_deviation
from zr_ray.functional.scores import score_entropy
from zr_ray.models.identity import judge_hash, template_hash
from zr_ray.models.student import Student, StudentScores
from zr_ray.records import ItemFault, JudgeIdentity, Limits
from zr_ray.workers.limits import check_image, check_prompt
from zr_ray.workers.reward_items import ItemWorker, RewardAnswer, RewardItem, float_pixels, scaled

CACHED_PROMPT_CHARS = 2_000_000
"""Characters of different prompts after which cached question layouts are dropped; about 60 bytes each stay in memory
until then."""


class RewardWorker(ItemWorker):
    """Owns one student. Verbs: warm_up, check, answer; `identity` names it, `phases` are the seconds of the last
    batch."""

    gives_gradient = True

    def __init__(
        self,
        folder: Path | str,
        name: str = "student",
        dtype: str = "float32",
        device: str = "cpu",
        grad_items: int = 16,
        limits: Limits = Limits(),
    ) -> None:
        """dtype: float32, bfloat16 or float64. grad_items: images of one backward, which bounds memory."""
        super().__init__(grad_items)
        self.student = Student(folder, getattr(torch, dtype)).to(device)
        self.rubric = self.student.rubric
        self.dimensions, self.bins = self.rubric.dimensions, self.rubric.bins
        self.device, self.limits = device, limits
        text = self.student.text
        self.identity = JudgeIdentity(
            name, judge_hash(folder), template_hash(text), self.student.preprocess.fingerprint
        )
        self.control_tokens = text.control_tokens
        self._max_tokens = getattr(self.student.judge.model.config.get_text_config(), "max_position_embeddings", 32768)
        self._pixels = torch.float64 if dtype == "float64" else torch.float32
        self._cached_chars = 0
        self._forward_started_s = self._preprocess_ended_s = 0.0
        self.student.judge.register_forward_pre_hook(self._mark_preprocessed)

    def _mark_preprocessed(self, *_) -> None:
        self._synchronize()
        self._preprocess_ended_s = time.perf_counter()

    def warm_up(self) -> None:
        """Forward and backward on a gray and a random image. Raises JudgeError unless the loaded weights give finite
        distributions."""
        random = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
        dimensions = self.rubric.dimensions
        weights = (1.0,) * len(dimensions)
        answers = self.answer(
            [RewardItem(i, "a photo", dimensions, weights) for i in (np.full_like(random, 0.5), random)]
        )
        for answer in answers:
            if isinstance(answer, ItemFault):
                raise JudgeError(
                    f"the judge must answer its warm-up question, got {answer.status}: {answer.reason}; check its"
                    " weights"
                )
            if not (np.abs(answer.q.sum(-1) - 1) < 1e-2).all():
                raise JudgeError(
                    f"the warm-up distributions must sum to 1, got {answer.q.sum(-1).tolist()}; check the judge's"
                    " weights"
                )
        if np.abs(answers[0].q - answers[1].q).max() == 0:
            raise JudgeError(
                "the judge gives the same distributions for two different images; check its vision weights"
            )

    def check(self, item: RewardItem) -> ItemFault | None:
        """What keeps an item from being scored, or None."""
        fault = check_image(item.image, self.limits) or check_prompt(item.prompt, self.limits, self.control_tokens)
        if fault is not None:
            return fault
        questions = self.student.questions
        if self._cached_chars > CACHED_PROMPT_CHARS:
            questions.forget()
            self._cached_chars = 0
        self._cached_chars += len(item.prompt)
        try:
            layout = questions.layout(item.prompt, item.dimensions, self.student.preprocess.grid(*item.image.shape[1:]))
        except JudgeError as error:
            return ItemFault("bad_prompt", str(error))
        longest = max(int(s.positions.max()) for s in layout) + 1
        if longest > self._max_tokens:
            return ItemFault(
                "prompt_too_long",
                f"image and prompt may take {self._max_tokens} positions, got {longest}; shorten the prompt",
            )
        return None

    def _compute(self, items: list[RewardItem]) -> list[RewardAnswer | ItemFault]:
        gradient, started = items[0].weights is not None, time.perf_counter()
        images = (
            torch.stack([float_pixels(item.image, self._pixels) for item in items])
            .to(self.device)
            .requires_grad_(gradient)
        )
        self._forward_started_s = time.perf_counter()
        self.phases["batch"] += self._forward_started_s - started
        with torch.set_grad_enabled(gradient):
            scores = self.student(images, [item.prompt for item in items], items[0].dimensions)
            self._synchronize()
            forwarded = time.perf_counter()
            reward, gradients = self._differentiate(scores, images, items) if gradient else (None, None)
        self._synchronize()
        self.phases["preprocess"] += self._preprocess_ended_s - self._forward_started_s
        self.phases["forward"] += forwarded - self._preprocess_ended_s
        self.phases["backward"] += time.perf_counter() - forwarded if gradient else 0.0
        return self._rows(scores, reward, gradients)

    def _differentiate(self, scores: StudentScores, images: Tensor, items: list[RewardItem]) -> tuple[Tensor, Tensor]:
        weights = torch.tensor([item.weights for item in items], dtype=scores.log_q.dtype, device=self.device)
        reward = aggregate_reward(scores.log_q, self.student.bins, weights, items[0].risk)
        return reward.detach(), torch.autograd.grad(reward.sum(), images)[0]

    def _rows(
        self, scores: StudentScores, reward: Tensor | None, gradients: Tensor | None
    ) -> list[RewardAnswer | ItemFault]:
        log_q = scores.log_q.detach()
        columns = (
            log_q.exp(),
            scores.mu.detach(),
            score_deviation(log_q, self.student.bins),
            score_entropy(log_q),
            scores.outside.detach(),
        )
        arrays = [column.cpu().numpy() for column in columns]
        finite = np.isfinite(arrays[0]).all((1, 2)) & np.isfinite(arrays[4]).all(1)
        if gradients is None:
            extras: list[tuple[Any, Any, Any]] = [(None, None, None)] * len(log_q)
        else:
            gradients, reward = gradients.cpu(), reward.cpu()
            finite &= gradients.isfinite().flatten(1).all(1).numpy()
            extras = [(float(r), *scaled(g)) for r, g in zip(reward, gradients, strict=True)]
        fault = ItemFault("failed", "the judge's answer is not finite; report the image")
        return [RewardAnswer(*[a[i] for a in arrays], *extras[i]) if finite[i] else fault for i in range(len(log_q))]  # type: ignore[call-arg]

    def _synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
