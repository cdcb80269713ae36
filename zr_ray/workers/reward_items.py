"""Items of reward requests and the worker that answers them in groups, whatever scores them: a judge or a scorer.

Items of a batch are grouped by image size, dimensions and kind; each group is one forward, and one backward if
gradients are asked for. One bad item does not take its neighbors along.
Left out on purpose: what is computed; that is the subclass's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from zr_ray.records import ItemFault


@dataclass(frozen=True)
class RewardItem:
    """One image to be scored."""

    image: np.ndarray | ItemFault
    """[3, H, W] uint8, or float in [0, 1]."""
    prompt: str | ItemFault
    dimensions: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    """[D'] asks for the gradient of sum_d w_d (mu_d - k sigma_d)."""
    risk: float = 0.0


@dataclass(frozen=True)
class RewardAnswer:
    """What the student says about one item."""

    q: np.ndarray
    """[D', K]."""
    mu: np.ndarray
    sigma: np.ndarray
    entropy: np.ndarray
    outside: np.ndarray
    """[D'] each."""
    reward: float | None = None
    gradient: np.ndarray | None = None
    """[3, H, W]; dR/dimage = scale * gradient."""
    scale: float | None = None


class ItemWorker:
    """Groups items and isolates the one that fails. A subclass brings `check` and `_compute`."""

    grad_items: int
    """Images of one backward, which bounds memory."""
    what = "judge"
    """Who is named in the fault of an item that could not be computed."""

    def __init__(self, grad_items: int) -> None:
        self.grad_items = grad_items
        self.phases: dict[str, float] = {}
        """Seconds of each phase of the last batch."""

    def check(self, item: RewardItem) -> ItemFault | None:
        """What keeps an item from being scored, or None."""
        raise NotImplementedError

    def _compute(self, items: list[RewardItem]) -> list[RewardAnswer | ItemFault]:
        """Answers of checked items of one size, kind and choice of dimensions."""
        raise NotImplementedError

    def answer(self, items: Sequence[RewardItem]) -> list[RewardAnswer | ItemFault]:
        """Answers in order. An item that fails its check, or whose numbers are not finite, is a fault; the others are
        answered."""
        started = time.perf_counter()
        answers: list[RewardAnswer | ItemFault | None] = [self.check(item) for item in items]
        self.phases = {"batch": time.perf_counter() - started, "preprocess": 0.0, "forward": 0.0, "backward": 0.0}
        groups: dict[tuple, list[int]] = {}
        for i, item in enumerate(items):
            if answers[i] is None:
                groups.setdefault((item.image.shape, item.dimensions, item.weights is not None, item.risk), []).append(
                    i
                )
        for (_, _, gradient, _), members in groups.items():
            size = self.grad_items if gradient else len(members)
            for start in range(0, len(members), size):
                part = members[start : start + size]
                for i, answer in zip(part, self._answer_group([items[i] for i in part]), strict=True):
                    answers[i] = answer
        return cast(list[RewardAnswer | ItemFault], answers)  # every place is filled by now

    def _answer_group(self, items: list[RewardItem]) -> list[RewardAnswer | ItemFault]:
        try:
            return self._compute(items)
        except Exception as error:  # one bad item must not take its neighbors along
            if len(items) > 1:
                return [answer for item in items for answer in self._answer_group([item])]
            return [ItemFault("failed", f"the {self.what} raised {type(error).__name__}: {error}")]


def scaled(gradient: Tensor) -> tuple[np.ndarray, float]:
    """(gradient / scale, scale) with scale the power of two that brings the largest entry into [1/2, 1]; exact. Scale 1
    for zeros."""
    largest = float(gradient.abs().max())
    scale = 2.0 ** np.frexp(largest)[1] if 0 < largest < float("inf") else 1.0
    return (gradient.double() / scale).to(gradient.dtype).numpy(), scale


def float_pixels(image: np.ndarray, dtype: torch.dtype) -> Tensor:
    """[3, H, W] in [0, 1]; bytes are divided by 255."""
    pixels = torch.from_numpy(np.ascontiguousarray(image) if image.flags.writeable else image.copy())
    return pixels.to(dtype) / 255 if image.dtype == np.uint8 else pixels.to(dtype)
