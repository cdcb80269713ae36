"""GSB, the paper's headline: how often is one image of a pair better, the same, worse; the same from scores as from
votes.

Axes: N pairs; P prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zr_ray.functional.intervals import ratio_interval


def gsb(
    before: Tensor, after: Tensor, prompt: Tensor, tie: float, resamples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """GSB = (good - bad) / (good + same + bad), in [-1, 1], with a 95 % interval over prompts.

    A pair is "same" where the scores differ by at most `tie`. Pairs with a nan are left out.
    Args: before, after: [N] scores. prompt: [N] long. tie: unit of the scores, at least 0.
    Returns: gsb, low, high, good, same, bad (shares), pairs."""
    known = before.isfinite() & after.isfinite()
    gap, prompt = (after - before)[known].double(), prompt[known]
    if not len(gap):
        return dict.fromkeys(("gsb", "low", "high", "good", "same", "bad"), float("nan")) | {"pairs": 0}
    good, bad = (gap > tie).double(), (gap < -tie).double()
    _, place = prompt.unique(return_inverse=True)
    sums = torch.zeros(int(place.max()) + 1, 2, dtype=torch.float64)
    sums.index_add_(0, place, torch.stack([good - bad, torch.ones_like(good)], -1))
    low, high = ratio_interval(sums[:, 0], sums[:, 1], resamples, seed)
    shares = {"good": float(good.mean()), "bad": float(bad.mean()), "same": float((1 - good - bad).mean())}
    return {"gsb": shares["good"] - shares["bad"], "low": low, "high": high, "pairs": len(gap)} | shares
