"""Rows of the table from predictions, differences of rows, and what may be claimed. Pure.

Seeds pooled: HPA counts the pairs of all training seeds together, PLCC and SRCC are means over seeds; intervals
resample prompts, the same draws for every row, so that a difference is paired by prompt. They say what another set of
prompts would do, not another set of training seeds; therefore a verdict also asks that every seed points the same way.
Axes: I items, D dimensions, R resamples, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zr_ray.functional import correlation, pairs
from zr_ray.functional.draws import percentile_interval, resampled_ratios
from zr_ray.functional.intervals import defined, defined_interval
from zr_ray.functional.resampling import resampled_plcc
from zr_ray.judging.evaluate import pooled_groups
from zr_ray.rubric import Rubric

METRICS = ("hpa", "margin_hpa", "plcc")
"""Metrics with intervals and differences."""


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
    """Seed of the bootstrap draws."""
    rubric: Rubric
    """Names of D, and the scale."""

    def columns(self, dimension: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """(human, group, prompt), all [N]: one dimension, or all of them with pairs formed inside a prompt and a
        dimension."""
        if dimension is not None:
            return self.of(self.human, dimension), self.prompt, self.prompt
        return self.human.flatten(), *pooled_groups(self.prompt, len(self.rubric.dimensions))

    def of(self, scores: Tensor, dimension: str | None) -> Tensor:
        """[N] the column of a dimension in scores [I, D], or all of them."""
        return scores.flatten() if dimension is None else scores[:, self.rubric.dimensions.index(dimension)]

    @property
    def dimensions(self) -> list[str]:
        """Dimensions with a human score."""
        return [name for d, name in enumerate(self.rubric.dimensions) if self.human[:, d].isfinite().any()]


def measure(mus: Sequence[Tensor], test: TestSet, metric: str, dimension: str | None = None) -> tuple[float, Tensor]:
    """(value, [R] values in the resamples) of one metric of one row, seeds pooled.

    Args: mus: per seed [I, D] expected scores, nan = malformed. metric: of METRICS. dimension: None pools all."""
    human, group, prompt = test.columns(dimension)
    predicted = [test.of(mu, dimension) for mu in mus]
    if metric == "plcc":
        draws = [resampled_plcc(x, human, prompt, test.resamples, test.seed) for x in predicted]
        return _mean([_known(correlation.plcc, x, human) for x in predicted]), _stacked_mean(draws)
    margin = test.rubric.margin if metric == "margin_hpa" else 0.0
    counts = [pairs.hpa_by_group(x, human, group, margin, prompt) for x in predicted]
    correct, total = (torch.stack(part).sum(0) for part in zip(*counts, strict=True))
    return (correct.sum() / total.sum()).item(), resampled_ratios(correct, total, test.resamples, test.seed)


def agreement_over_seeds(mus: Sequence[Tensor], test: TestSet) -> dict:
    """{"pooled": ..., "dimensions": {...}} with the keys of `result.json`."""

    def entry(dimension: str | None) -> dict:
        found: dict = {}
        for metric in METRICS:
            value, draws = measure(mus, test, metric, dimension)
            found |= {metric: defined(value), f"{metric}_ci": defined_interval(percentile_interval(draws))}
        human, _, _ = test.columns(dimension)
        columns = [test.of(mu, dimension) for mu in mus]
        why = next((reason for x in columns if (reason := _known(correlation.why_undefined, x, human))), None)
        return found | {"srcc": defined(_mean([_known(correlation.srcc, x, human) for x in columns])), "undefined": why}

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
    ci = defined_interval(percentile_interval(draws - others)) if len(draws) == len(others) else None
    return {
        "difference": defined(value - other),
        "ci": ci,
        "per_seed": {s: defined(value) for s, value in per_seed.items()},
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


def _known(metric, x: Tensor, human: Tensor):
    known = x.isfinite() & human.isfinite()
    return metric(x[known], human[known])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _stacked_mean(draws: Sequence[Tensor]) -> Tensor:
    """Draw by draw over seeds; empty if the statistic is undefined for a seed."""
    return (
        torch.stack(list(draws)).mean(0) if len({len(d) for d in draws}) == 1 else torch.empty(0, dtype=torch.float64)
    )
