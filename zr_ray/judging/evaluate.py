"""Judging a held-out set: score distributions from the rollout actors, agreement with the annotators, one row of the
table.

A malformed output is counted and left nan: HPA counts its pairs as wrong, correlations leave it out, nothing is scored
0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from zr_ray.data.encoded import encoded_image
from zr_ray.data.pairs import aggregate_scores
from zr_ray.functional import correlation, intervals, pairs, scores
from zr_ray.functional.intervals import defined, defined_interval
from zr_ray.functional.risd import average_distributions
from zr_ray.judging.ask import generate, question, request_seed, score
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric
from zr_ray.workers.recovery import Recovery


@dataclass(frozen=True)
class Judged:
    """A judge's answers on I items in all D dimensions, S outputs per question."""

    label_logprobs: Tensor
    """[I, D, S, K] float64 log-probs of the labels over the full vocabulary, nats; nan where an output was
    malformed."""
    sample_tokens: Tensor
    """[I, D, S] generated tokens of each output."""
    rubric: Rubric
    """The judge's: names of D, scores of K."""
    reasoning: tuple[tuple[str, ...], ...] = ()
    """[I][D] reasoning text of the first sample; kept by the rank that asked, empty elsewhere."""

    def __post_init__(self) -> None:
        shape, wanted = self.label_logprobs.shape, (len(self.rubric.dimensions), len(self.rubric.bins))
        if (shape[1], shape[3]) != wanted:
            raise ValueError(f"label_logprobs must be [I, {wanted[0]}, S, {wanted[1]}] by the rubric, got {shape}")

    @property
    def samples(self) -> int:
        """S, outputs per question."""
        return self.label_logprobs.shape[2]

    @cached_property
    def q(self) -> Tensor:
        """[I, D, K] float64 score distributions, averaged over well-formed outputs; nan where there was none."""
        return self.log_q.exp()

    @cached_property
    def log_q(self) -> Tensor:
        """[I, D, K] float64 nats: log of `q`."""
        log_q = scores.score_log_distribution(self.label_logprobs)
        return average_distributions(log_q.movedim(2, 0), ~log_q.isnan().any(-1).movedim(2, 0))

    @property
    def mu(self) -> Tensor:
        """[I, D] expected scores, rubric points; nan where q is."""
        return (self.q * self.bins).sum(-1)

    @property
    def bins(self) -> Tensor:
        """[K] float64 rubric points."""
        return torch.tensor(self.rubric.bins, dtype=torch.float64)

    @property
    def tokens(self) -> Tensor:
        """[I, D] generated tokens per score, all samples together."""
        return self.sample_tokens.sum(-1)

    @property
    def malformed(self) -> Tensor:
        """[I, D] malformed outputs."""
        return self.label_logprobs.isnan().any(-1).sum(-1).float()

    def first(self, samples: int) -> Judged:
        """The answers as if only the first `samples` outputs had been drawn: one point of a test-time scaling curve."""
        return replace(
            self, label_logprobs=self.label_logprobs[:, :, :samples], sample_tokens=self.sample_tokens[:, :, :samples]
        )


def judge_items(
    workers: Sequence,
    text: JudgeText,
    items: Sequence[AnnotatedImage],
    *,
    reasoning: bool,
    samples: int,
    batch_items: int,
    seed: int,
    deadline_s: float,
    rank: int = 0,
    world: int = 1,
    reduce_sum: Callable[[Sequence[float]], list[float]] | None = None,
    recovery: Recovery | None = None,
) -> Judged:
    """Judge every item in every dimension. Each rank asks for its share of items; `reduce_sum` puts the shares
    together.

    Args: reasoning: False reads the distribution directly (one token). samples: 0 decodes one greedy trace, n > 0
        samples n traces and averages their distributions. batch_items: items sent to the workers at a time. deadline_s:
        per batch. recovery: brings lost workers back; None: their loss is an error."""
    rubric = text.rubric
    shape = (len(items), len(rubric.dimensions), max(1, samples) if reasoning else 1)
    labels, valid, tokens = (
        torch.zeros(*shape, len(rubric.bins), dtype=torch.float64),
        torch.zeros(shape),
        torch.zeros(shape),
    )
    texts = [[""] * shape[1] for _ in range(shape[0])]
    mine = list(range(rank, len(items), world))
    for start in range(0, len(mine), batch_items):
        chunk = mine[start : start + batch_items]
        asked = [(i, d) for i in chunk for d in range(shape[1])]
        files = {i: encoded_image(items[i].image) for i in chunk}  # one object for all questions travels once
        requests = [
            question(text, items[i], rubric.dimensions[d], request_seed(seed, i, d), not reasoning, files[i])
            for i, d in asked
        ]
        what = f"judging items {start + 1}-{start + len(chunk)} of {len(mine)}"
        if reasoning:
            groups = generate(workers, requests, shape[2], 1.0 if samples else 0.0, deadline_s, what, recovery)
        else:
            groups = [[answer] for answer in score(workers, requests, deadline_s, what, recovery)]
        for (i, d), group in zip(asked, groups, strict=True):
            for s, judgement in enumerate(group):
                tokens[i, d, s] = len(judgement.token_ids)
                if judgement.score_index is not None:
                    labels[i, d, s], valid[i, d, s] = torch.from_numpy(judgement.score_logprobs).double(), 1.0
            texts[i][d] = text.reasoning(group[0].token_ids, group[0].score_index) if reasoning else ""
    if world > 1:
        shares = (labels, valid, tokens)
        labels, valid, tokens = (
            torch.tensor(reduce_sum(t.flatten().tolist()), dtype=t.dtype).view(t.shape) for t in shares
        )
    labels = torch.where(valid.unsqueeze(-1) > 0, labels, math.nan)
    return Judged(labels, tokens, rubric, tuple(map(tuple, texts)))


def human_scores(items: Sequence[AnnotatedImage], rubric: Rubric) -> Tensor:
    """[I, D] aggregated human scores in the rubric's dimensions, rubric points; nan where a dimension has none."""
    rows = [[aggregate_scores(i.scores[d]) if d in i.scores else math.nan for d in rubric.dimensions] for i in items]
    return torch.tensor(rows, dtype=torch.float64)


def true_scores(items: Sequence[AnnotatedImage], rubric: Rubric) -> Tensor | None:
    """[I, D] true scores of a simulated data set, or None if any item lacks some."""
    if any(not set(rubric.dimensions) <= set(item.truth) for item in items):
        return None
    return torch.tensor([[item.truth[d] for d in rubric.dimensions] for item in items], dtype=torch.float64)


def agreement(
    mu: Tensor, human: Tensor, items: Sequence[AnnotatedImage], rubric: Rubric, resamples: int, seed: int
) -> dict:
    """{"pooled": ..., "dimensions": {d: ...}} of `result.json`: PLCC, SRCC, HPA, margin HPA with bootstrap intervals
    over prompts.

    Args: mu, human: [I, D] rubric points; nan = none. resamples, seed: of the bootstrap.
    Raises: ValueError if D is not the rubric's."""
    if mu.shape != human.shape or mu.shape[1] != len(rubric.dimensions):
        raise ValueError(f"scores must be [I, {len(rubric.dimensions)}], got {mu.shape} and {human.shape}")
    group = prompt_index([item.group for item in items])
    by_dimension = {
        name: _agreement(mu[:, d], human[:, d], group, group, rubric.margin, resamples, seed)
        for d, name in enumerate(rubric.dimensions)
        if human[:, d].isfinite().any()
    }
    inside, every = pooled_groups(group, len(rubric.dimensions))
    return {
        "pooled": _agreement(mu.flatten(), human.flatten(), inside, every, rubric.margin, resamples, seed),
        "dimensions": by_dimension,
    }


def prompt_index(groups: Sequence[str]) -> Tensor:
    """[I] long: each item's prompt as the place of its group's name among the sorted names."""
    names = {name: n for n, name in enumerate(sorted(set(groups)))}
    return torch.tensor([names[group] for group in groups], dtype=torch.long)


def pooled_groups(prompt: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """(group, prompt), both [I * D], of scores [I, D] flattened: pairs are formed inside a prompt and a dimension.

    Args: prompt: [I] long."""
    every = prompt[:, None].expand(-1, dimensions)
    return (every * dimensions + torch.arange(dimensions)).flatten(), every.flatten()


def _agreement(
    mu: Tensor, human: Tensor, group: Tensor, prompt: Tensor, margin: float, resamples: int, seed: int
) -> dict:
    correct, total = pairs.hpa_by_group(mu, human, group, 0.0, prompt)
    margin_correct, margin_total = pairs.hpa_by_group(mu, human, group, margin, prompt)
    known = mu.isfinite() & human.isfinite()
    x, y = mu[known], human[known]
    return {
        "hpa": _ratio(correct, total),
        "hpa_ci": defined_interval(intervals.ratio_interval(correct, total, resamples, seed)),
        "margin_hpa": _ratio(margin_correct, margin_total),
        "margin_hpa_ci": defined_interval(intervals.ratio_interval(margin_correct, margin_total, resamples, seed)),
        "plcc": defined(correlation.plcc(x, y)),
        "plcc_ci": defined_interval(intervals.plcc_interval(x, y, prompt[known], resamples, seed)),
        "srcc": defined(correlation.srcc(x, y)),
        "items": int(known.sum()),
        "pairs": int(total.sum()),
        "undefined": correlation.why_undefined(x, y),
    }


def row(method: str, judged: Judged, human: Tensor, items: Sequence[AnnotatedImage], resamples: int, seed: int) -> dict:
    """One row of `result.json`."""
    outputs = judged.sample_tokens.numel()
    return {
        "method": method,
        **agreement(judged.mu, human, items, judged.rubric, resamples, seed),
        "tokens_per_score": float(judged.tokens.mean()),
        "malformed_frac": float(judged.malformed.sum() / outputs),
        "reliability": {
            name: reliability(judged.mu[:, d], human[:, d]) for d, name in enumerate(judged.rubric.dimensions)
        },
    }


def reliability(mu: Tensor, human: Tensor, bins: int = 8) -> dict[str, list]:
    """Mean human score against mean mu, in `bins` groups of equal size sorted by mu."""
    known = mu.isfinite() & human.isfinite()
    order = mu[known].argsort()
    parts = [p for p in np.array_split(order.numpy(), bins) if len(p)]
    x, y = mu[known], human[known]
    return {
        "predicted": [float(x[p].mean()) for p in parts],
        "human": [float(y[p].mean()) for p in parts],
        "count": [len(p) for p in parts],
    }


def rounded(mu: Tensor) -> list[list[float | None]]:
    """[I][D] for rows.json: four digits, None where there is no score."""
    return [[round(float(v), 4) if v == v else None for v in item] for item in mu]


def _ratio(correct: Tensor, total: Tensor) -> float | None:
    return float(correct.sum() / total.sum()) if total.sum() > 0 else None
