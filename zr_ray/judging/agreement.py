"""Everything known about a judge on an annotated set: agreement with the annotators, and how good its DISTRIBUTIONS
are.

Extends a row of `evaluate.py`. Per dimension and pooled, each with a bootstrap interval over prompts where one is cheap
(PLCC after the logistic has none: the fit would have to be repeated in every resample; raw PLCC's and SRCC's are beside
it). A malformed output has no distribution: it is counted, HPA and tie-aware accuracy count its pairs as wrong, the
rest leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.functional import calibration, correlation, intervals, pairs, rank, resampling, scores
from zr_ray.functional.intervals import defined, defined_interval
from zr_ray.judging.evaluate import Judged, human_scores, pooled_groups, prompt_index, row
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric

WIN_BINS = 10
"""Equal-width bins of P(a beats b) in its calibration error."""
_SAME = 1e-6
"""Rubric points: human means closer than this tie."""


def full_row(method: str, judged: Judged, items: Sequence[AnnotatedImage], resamples: int, seed: int) -> dict:
    """One row of `result.json` with the keys of `more_agreement` added to "pooled" and to every dimension.

    Args: method: the row's name. resamples, seed: of the bootstrap; the seed also splits prompts into halves for the
    tie threshold."""
    rubric, bins = judged.rubric, judged.bins
    human, votes = human_scores(items, rubric), annotator_votes(items, rubric)
    result = row(method, judged, human, items, resamples, seed)
    prompt = prompt_index([item.group for item in items])
    outside = scores.outside_mass(judged.label_logprobs).nanmean(-1)  # [I, D], nan where no output is well formed
    for d, name in enumerate(rubric.dimensions):
        if name in result["dimensions"]:
            one = (judged.q[:, d], outside[:, d], human[:, d], votes[:, d], prompt, prompt)
            result["dimensions"][name] |= more_agreement(*one, bins, resamples, seed)
    inside, every = pooled_groups(prompt, len(rubric.dimensions))
    flat = (judged.q.flatten(0, 1), outside.flatten(), human.flatten(), votes.flatten(0, 1), inside, every)
    result["pooled"] |= more_agreement(*flat, bins, resamples, seed)
    return result


def annotator_votes(items: Sequence[AnnotatedImage], rubric: Rubric) -> Tensor:
    """[I, D, K] float64, how many annotators chose each bin; all 0 where there is no score, or one that is no bin (an
    average)."""
    bins = torch.tensor(rubric.bins, dtype=torch.float64)
    votes = torch.zeros(len(items), len(rubric.dimensions), len(bins), dtype=torch.float64)
    for i, item in enumerate(items):
        for d, name in enumerate(rubric.dimensions):
            given = item.scores.get(name, ())
            given = torch.tensor(given if isinstance(given, tuple) else (given,), dtype=torch.float64)
            if len(given) and bool(((given[:, None] - bins).abs().amin(-1) < 1e-4).all()):
                votes[i, d] = calibration.vote_counts(given[None], bins)[0]
    return votes


def more_agreement(
    q: Tensor,
    outside: Tensor,
    human: Tensor,
    votes: Tensor,
    group: Tensor,
    prompt: Tensor,
    bins: Tensor,
    resamples: int,
    seed: int,
) -> dict:
    """The further keys of one "pooled" or dimension entry; every `<key>_ci` is a 95 % interval or null.

        srcc_ci; krcc: Kendall's tau-b; plcc_logistic: PLCC after the 4-parameter logistic
        tie_accuracy: pairwise accuracy that knows ties, on the prompts that did not choose tie_threshold (rubric
        points) nll (nats), crps (rubric points): of the annotators' votes; voted: items that have votes on bins
        win_ece: calibration error of P(a beats b) against the aggregated scores; win_ece_votes: against single votes
        entropy: of q, nats; outside_mass: probability on tokens that are no label

    Args: q: [N, K], nan = none. outside: [N]. human: [N] rubric points, nan = none. votes: [N, K] counts. group: [N]
        long, whose items are compared. prompt: [N] long, what is resampled, a union of groups. bins: [K] rubric
        points."""
    mu = (q * bins).sum(-1)
    known = mu.isfinite() & human.isfinite()
    x, y, clusters = mu[known], human[known], prompt[known]
    log_q = q.clamp_min(1e-300).log()
    voted = known & (votes.sum(-1) > 0)
    means = {
        "nll": calibration.annotator_nll(log_q[voted], votes[voted]),
        "crps": calibration.crps(q[voted], bins, votes[voted]),
        "entropy": scores.score_entropy(log_q[known]),
        "outside_mass": outside[known],
    }
    found: dict = {
        "srcc_ci": defined_interval(intervals.srcc_interval(x, y, clusters, resamples, seed)),
        "krcc": defined(correlation.krcc(x, y)),
        "krcc_ci": defined_interval(resampling.krcc_interval(x, y, clusters, resamples, seed)),
        "plcc_logistic": defined(correlation.logistic4_plcc(x, y)),
        "voted": int(voted.sum()),
    }
    for name, values in means.items():
        of = prompt[voted] if name in ("nll", "crps") else clusters
        found[name] = defined(values.mean()) if len(values) else None
        sums, counts = _sums(of, values, torch.ones_like(values))
        found[f"{name}_ci"] = defined_interval(intervals.ratio_interval(sums, counts, resamples, seed))
    found |= _ties(mu, human, group, prompt, resamples, seed)
    return found | _wins(log_q, human, votes, known, group, prompt, resamples, seed)


def _ties(mu: Tensor, human: Tensor, group: Tensor, prompt: Tensor, resamples: int, seed: int) -> dict:
    """Tie-aware accuracy: the threshold from one half of the prompts, counts and their interval from the other."""
    prompts = prompt.unique()
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    chosen = torch.isin(prompt, prompts[order[: len(prompts) // 2]])
    threshold = pairs.tie_threshold(mu[chosen], human[chosen], group[chosen])
    if math.isnan(threshold):
        return {"tie_accuracy": None, "tie_accuracy_ci": None, "tie_threshold": None}
    counts = []
    for one in prompts[order[len(prompts) // 2 :]].sort().values:
        here = prompt == one
        counts.append(pairs.pair_accuracy_with_ties(mu[here], human[here], group[here], threshold))
    correct, total = torch.tensor(counts, dtype=torch.float64).view(-1, 2).unbind(-1)
    interval = defined_interval(intervals.ratio_interval(correct, total, resamples, seed))
    return {
        "tie_accuracy": defined(correct.sum() / total.sum()),
        "tie_accuracy_ci": interval,
        "tie_threshold": threshold,
    }


def _wins(
    log_q: Tensor, human: Tensor, votes: Tensor, known: Tensor, group: Tensor, prompt: Tensor, resamples: int, seed: int
) -> dict:
    """Calibration error of P(a beats b), each pair both ways round."""
    a, b = pairs.pair_indices(group)
    kept = known[a] & known[b]
    a, b = a[kept], b[kept]
    probability = rank.win_probability(log_q[a], log_q[b]).clamp(0, 1)
    gap = human[a] - human[b]
    preferred = torch.where(gap.abs() <= _SAME, 0.5, (gap > 0).double())
    share = votes / votes.sum(-1, keepdim=True)
    by_vote = rank.win_probability(share[a].log(), share[b].log()).clamp(
        0, 1
    )  # of one random vote each; nan without votes
    found = {}
    for name, outcome in (("win_ece", preferred), ("win_ece_votes", by_vote)):
        here = outcome.isfinite()
        p, o, clusters = probability[here], outcome[here], prompt[a[here]]
        found[name] = defined(calibration.win_calibration_error(p, o, WIN_BINS))
        found[f"{name}_ci"] = defined_interval(_ece_interval(p, o, clusters, resamples, seed))
    return found


def _ece_interval(
    probability: Tensor, outcome: Tensor, prompt: Tensor, resamples: int, seed: int
) -> tuple[float, float]:
    both, happened, prompt = (
        torch.cat([probability, 1 - probability]),
        torch.cat([outcome, 1 - outcome]),
        prompt.repeat(2),
    )
    place = (both * WIN_BINS).long().clamp_max(WIN_BINS - 1)
    in_bin = torch.nn.functional.one_hot(place, WIN_BINS).double()
    sums = torch.cat(_sums(prompt, in_bin * (both - happened)[:, None], in_bin), -1)

    def error(resampled: Tensor) -> Tensor:
        off, count = resampled.split(WIN_BINS, -1)
        return off.abs().sum(-1) / count.sum(-1)

    return resampling.sums_interval(sums, error, resamples, seed)


def _sums(prompt: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Per-prompt sums [P, ...] of values [M, ...]."""
    prompts, place = prompt.unique(return_inverse=True)
    return tuple(v.new_zeros(len(prompts), *v.shape[1:]).index_add(0, place, v) for v in values)
