"""Rows of the table from predictions, differences of rows, and what may be claimed. Pure.

Seeds pooled: HPA counts the pairs of all training seeds together, PLCC and SRCC are means over seeds; intervals
resample prompts, the same draws for every row, so that a difference is paired by prompt. They say what another set of
prompts would do, not another set of training seeds; therefore a verdict also asks that every seed points the same way.
Axes: I items, D dimensions, R resamples, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zr_ray.functional import correlation, pairs
from zr_ray.functional.resampling import percentile_interval, resampled_plcc, resampled_ratios
from zr_ray.rubric import DIMENSIONS

METRICS = ("hpa", "margin_hpa", "plcc")
"""Those with intervals and differences."""
_MARGIN = {"hpa": 0.0, "margin_hpa": 0.5}


@dataclass(frozen=True)
class TestSet:
    """What predictions are compared with."""

    __test__ = False  # no test case, whatever pytest thinks of the name

    human: Tensor
    """[I, D] aggregated human scores, nan = none."""
    prompt: Tensor
    """[I] long, prompt of each item."""
    resamples: int
    seed: int
    """Of the bootstrap."""

    def columns(self, dimension: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """(human, group, prompt), all [N]: one dimension, or all of them with pairs formed inside a prompt and a
        dimension."""
        if dimension is not None:
            d = DIMENSIONS.index(dimension)
            return self.human[:, d], self.prompt, self.prompt
        every = self.prompt[:, None].expand(-1, len(DIMENSIONS))
        inside = every * len(DIMENSIONS) + torch.arange(len(DIMENSIONS))
        return self.human.flatten(), inside.flatten(), every.flatten()

    @property
    def dimensions(self) -> list[str]:
        """Those with a human score."""
        return [name for d, name in enumerate(DIMENSIONS) if self.human[:, d].isfinite().any()]


def measure(mus: Sequence[Tensor], test: TestSet, metric: str, dimension: str | None = None) -> tuple[float, Tensor]:
    """(value, [R] values in the resamples) of one metric of one row, seeds pooled.

    Args: mus: per seed [I, D] expected scores, nan = malformed. metric: of METRICS. dimension: None pools all."""
    human, group, prompt = test.columns(dimension)
    predicted = [mu.flatten() if dimension is None else mu[:, DIMENSIONS.index(dimension)] for mu in mus]
    if metric == "plcc":
        draws = [resampled_plcc(x, human, prompt, test.resamples, test.seed) for x in predicted]
        return _mean([_known(correlation.plcc, x, human) for x in predicted]), _stacked_mean(draws)
    counts = [pairs.hpa_by_group(x, human, group, _MARGIN[metric], prompt) for x in predicted]
    correct, total = (torch.stack(part).sum(0) for part in zip(*counts, strict=True))
    return (correct.sum() / total.sum()).item(), resampled_ratios(correct, total, test.resamples, test.seed)


def agreement(mus: Sequence[Tensor], test: TestSet) -> dict:
    """{"pooled": ..., "dimensions": {...}} with the keys of `result.json`."""

    def entry(dimension: str | None) -> dict:
        found: dict = {}
        for metric in METRICS:
            value, draws = measure(mus, test, metric, dimension)
            found |= {metric: _number(value), f"{metric}_ci": _interval(draws)}
        human, _, _ = test.columns(dimension)
        columns = [mu.flatten() if dimension is None else mu[:, DIMENSIONS.index(dimension)] for mu in mus]
        return found | {"srcc": _number(_mean([_known(correlation.srcc, x, human) for x in columns]))}

    return {"pooled": entry(None), "dimensions": {name: entry(name) for name in test.dimensions}}


def difference(better: dict[int, Tensor], worse: dict[int, Tensor], test: TestSet, metric: str) -> dict:
    """Row minus row over the seeds that both have.

    Args: better, worse: seed -> [I, D] mu; the names are those of the claim.
    Returns: {"difference", "ci", "per_seed": {seed: difference}, "verdict"}; without a common seed only the verdict."""
    seeds = sorted(set(better) & set(worse))
    if not seeds:
        return {"difference": None, "ci": None, "per_seed": {}, "verdict": "cannot tell (not run)"}
    (value, draws), (other, others) = (measure([row[s] for s in seeds], test, metric) for row in (better, worse))
    per_seed = {s: measure([better[s]], test, metric)[0] - measure([worse[s]], test, metric)[0] for s in seeds}
    ci = _interval(draws - others) if len(draws) == len(others) else None
    return {
        "difference": _number(value - other),
        "ci": ci,
        "per_seed": per_seed,
        "verdict": verdict(ci, list(per_seed.values())),
    }


def verdict(ci: list[float] | None, per_seed: Sequence[float]) -> str:
    """ "holds": the paired interval is above 0 and every seed points that way; "does not hold": the same below 0; else
    "cannot tell"."""
    if ci is not None and ci[0] > 0 and all(d > 0 for d in per_seed):
        return "holds"
    if ci is not None and ci[1] < 0 and all(d < 0 for d in per_seed):
        return "does not hold"
    return "cannot tell"


def _known(metric, x: Tensor, human: Tensor) -> float:
    known = x.isfinite() & human.isfinite()
    return metric(x[known], human[known])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _stacked_mean(draws: Sequence[Tensor]) -> Tensor:
    """Draw by draw over seeds; empty if the statistic is undefined for a seed."""
    return (
        torch.stack(list(draws)).mean(0) if len({len(d) for d in draws}) == 1 else torch.empty(0, dtype=torch.float64)
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _interval(draws: Tensor) -> list[float] | None:
    bounds = percentile_interval(draws)
    return list(bounds) if all(map(math.isfinite, bounds)) else None
