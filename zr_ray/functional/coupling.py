"""How much a judge's score follows its reasoning: swap the traces of two items and look where the scores go.

Z-Reward (arXiv 2606.09076) names weak coupling of reasoning and score as a limit and does not measure it. Ours.
Axes: M pairs of items of one prompt, 2 sides. own[m,j] = mu of item j with its own trace; swapped[m,j] = mu of item j
with the other's.
"""

from __future__ import annotations

from torch import Tensor

from zr_ray.functional.intervals import defined_interval, ratio_interval

_MOVED = 1e-6
"""Rubric points: gaps below are rounding, such a pair says nothing about order."""


def trace_following(
    own: Tensor, swapped: Tensor, prompt: Tensor, resamples: int = 1000, seed: int = 0
) -> dict[str, float | list[float] | int | None]:
    """Share of the score that comes with the trace, and how often the order of a pair follows it.

        follow = sum_m,j (swapped[m,j] - own[m,j]) (own[m,other] - own[m,j]) / sum_m,j (own[m,other] - own[m,j])^2

    follow is the least-squares slope of the score's move on the move that the trace asks for: 1, the score is what the
    trace says whatever the image; 0, the trace changes nothing. order_follows: share of pairs with own[m,0] != own[m,1]
    in which, after the swap, the item that holds the better trace wins. Where it does not, reasoning and score
    disagree.
    Args: own, swapped: [M, 2] rubric points, nan = malformed (the pair is left out). prompt: [M] long, what is
    resampled.
    Returns: {"follow", "follow_ci", "order_follows", "order_follows_ci", "trace_effect": mean |swapped - own| (same
    image, other trace), "image_effect": mean |swapped - own of the other| (same trace, other image), "pairs"}; None
    where undefined.
    Raises: ValueError if shapes differ."""
    if own.ndim != 2 or own.shape[1] != 2 or swapped.shape != own.shape or prompt.shape != own.shape[:1]:
        raise ValueError(
            f"need own and swapped [M, 2] and prompt [M], got {[tuple(t.shape) for t in (own, swapped, prompt)]}"
        )
    known = (own.isfinite() & swapped.isfinite()).all(-1)
    own, swapped, prompt = own[known].double(), swapped[known].double(), prompt[known]
    asked, moved = own.flip(1) - own, swapped - own
    labels, place = prompt.unique(return_inverse=True)

    def by_prompt(values: Tensor) -> Tensor:
        """[M] -> [prompts] sums."""
        return values.new_zeros(len(labels)).index_add(0, place, values)

    products, squares = by_prompt((moved * asked).sum(-1)), by_prompt(asked.square().sum(-1))
    ordered = asked[:, 0].abs() > _MOVED
    reversed_ = ordered & ((swapped[:, 1] - swapped[:, 0]) * asked[:, 0] < 0)
    follows, counted = by_prompt(reversed_.double()), by_prompt(ordered.double())
    return {
        "follow": _ratio(products, squares),
        "follow_ci": defined_interval(ratio_interval(products, squares, resamples, seed)),
        "order_follows": _ratio(follows, counted),
        "order_follows_ci": defined_interval(ratio_interval(follows, counted, resamples, seed)),
        "trace_effect": moved.abs().mean().item() if len(own) else None,
        "image_effect": (swapped - own.flip(1)).abs().mean().item() if len(own) else None,
        "pairs": len(own),
    }


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return (part.sum() / whole.sum()).item() if whole.sum() > 0 else None
