"""Swapping reasoning traces: score an image under the trace that the judge wrote for another image of the same prompt.

One trace per question, then one token per swapped question through the direct-score path: the question, the given trace
and the marker are the prompt, the distribution over the labels is what follows.
Left out on purpose: swaps across prompts; a trace that names another prompt's objects is no longer about this question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from zr_ray.data.pairs import preference_pairs
from zr_ray.functional import scores
from zr_ray.functional.coupling import trace_following
from zr_ray.judging.ask import generate, question, score
from zr_ray.judging.evaluate import prompt_index
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage, Judgement, JudgeRequest, PreferencePair

RESCORED = 32
"""Questions scored again with their own trace, which must give back the score that came with it."""


def question_with_trace(text: JudgeText, item: AnnotatedImage, dimension: str, trace: np.ndarray | str) -> JudgeRequest:
    """A request for `score`: the reasoning question, then a given trace up to and with the marker; the next token is
    the score.

    Args: trace: [t] int32 sampled tokens before the score token, or a reasoning text (marker added as in training
    answers)."""
    if isinstance(trace, str):
        tokens, index = text.answer(0, trace)
        trace = tokens[:index]
    asked = question(text, item, dimension, seed=0)
    return JudgeRequest(
        f"{asked.key}/given trace", np.concatenate([asked.token_ids, trace]).astype(np.int32), asked.image, 0
    )


def widest_pairs(items: Sequence[AnnotatedImage], dimensions: Sequence[str]) -> list[PreferencePair]:
    """Per prompt and dimension the pair whose human scores differ most: its traces should differ."""
    widest: dict[tuple[str, str], PreferencePair] = {}
    for pair in preference_pairs(items, dimensions):
        key = (pair.winner.group, pair.dimension)
        if (
            key not in widest
            or pair.winner_score - pair.loser_score > widest[key].winner_score - widest[key].loser_score
        ):
            widest[key] = pair
    return list(widest.values())


def swap_traces(
    workers: Sequence,
    text: JudgeText,
    items: Sequence[AnnotatedImage],
    *,
    batch_items: int,
    deadline_s: float,
    resamples: int,
    seed: int,
) -> dict:
    """`trace_following` pooled ("pooled") and per dimension ("dimensions") on the widest pair of each prompt and
    dimension.

    Traces are greedy. "rescored_max_abs_diff": largest difference, rubric points, between a score and the same trace
    scored again."""
    dimensions, bins = text.rubric.dimensions, torch.tensor(text.rubric.bins, dtype=torch.float64)
    pairs = widest_pairs(items, dimensions)
    own, swapped = torch.full((2, len(pairs), 2), math.nan, dtype=torch.float64)
    again = 0.0
    for start in range(0, len(pairs), batch_items):
        part = pairs[start : start + batch_items]
        sides = [(item, pair.dimension) for pair in part for item in (pair.winner, pair.loser)]
        what = f"traces of pairs {start + 1}-{start + len(part)} of {len(pairs)}"
        answers = [
            group[0]
            for group in generate(workers, [question(text, i, d, seed=0) for i, d in sides], 1, 0.0, deadline_s, what)
        ]
        whole = [
            n
            for n in range(0, len(answers), 2)
            if answers[n].score_index is not None and answers[n + 1].score_index is not None
        ]
        asked = [question_with_trace(text, *sides[n + j], _trace(answers[n + 1 - j])) for n in whole for j in (0, 1)]
        if start == 0:
            asked += [question_with_trace(text, *sides[n], _trace(answers[n])) for n in whole[:RESCORED]]
        scored = [_mu(answer, bins) for answer in score(workers, asked, deadline_s, f"swapped {what}")]
        for place, n in enumerate(whole):
            own[start + n // 2] = torch.tensor([_mu(answers[n], bins), _mu(answers[n + 1], bins)])
            swapped[start + n // 2] = torch.tensor(scored[2 * place : 2 * place + 2])
        own_again = zip(whole, scored[2 * len(whole) :], strict=False)
        again = max([again, *(abs(_mu(answers[n], bins) - mu) for n, mu in own_again)])
    prompt = prompt_index([pair.winner.group for pair in pairs])
    of = {d: torch.tensor([pair.dimension == d for pair in pairs], dtype=torch.bool) for d in dimensions}
    return {
        "pooled": trace_following(own, swapped, prompt, resamples, seed),
        "dimensions": {
            d: trace_following(own[here], swapped[here], prompt[here], resamples, seed)
            for d, here in of.items()
            if here.any()
        },
        "rescored_max_abs_diff": again,
    }


def _trace(answer: Judgement) -> np.ndarray:
    return answer.token_ids[: answer.score_index]


def _mu(answer: Judgement, bins: torch.Tensor) -> float:
    log_q = scores.score_log_distribution(torch.from_numpy(answer.score_logprobs).double())
    return scores.expected_score(log_q, bins).item()
