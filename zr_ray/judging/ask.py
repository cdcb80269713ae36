"""Asking rollout actors: questions from annotated images, fanned out over workers, answers back in order.

Used by every loop. Works on Ray actor handles of `RolloutWorker`; each learner rank asks its own share of them.
Left out on purpose: load balancing. Requests of a step are alike, so contiguous equal shares keep all workers busy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zr_ray.data.annotations import load_image
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage, Judgement, JudgeRequest, PreferencePair
from zr_ray.run.observe import wait_for


def workers_of_rank(workers: Sequence, rank: int, world: int) -> list:
    """The rollout workers that rank asks: its share when there are at least as many as ranks, else one shared
    worker."""
    return list(workers[rank::world]) or [workers[rank % len(workers)]]


def request_seed(*parts: int) -> int:
    """Seed of one request from (run seed, step, index, ...): stateless, so a resumed run samples the same traces."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] % (2**31 - 1024))


def question(text: JudgeText, item: AnnotatedImage, dimension: str, seed: int, direct: bool = False) -> JudgeRequest:
    """The request for one item in one dimension; reads the image."""
    return JudgeRequest(
        f"{item.id}/{dimension}", text.question(item.prompt, dimension, direct), load_image(item.image), seed
    )


def pair_requests(
    text: JudgeText, pairs: Sequence[PreferencePair], step: int, seed: int, indices: Sequence[int]
) -> list[JudgeRequest]:
    """[2 * len(pairs)] requests, winner then loser of each pair. indices: the pairs' positions in the step's global
    batch."""
    return [
        question(text, item, pair.dimension, request_seed(seed, step, index, side))
        for index, pair in zip(indices, pairs, strict=True)
        for side, item in enumerate((pair.winner, pair.loser))
    ]


def generate(
    workers: Sequence,
    requests: Sequence[JudgeRequest],
    group_size: int,
    temperature: float,
    deadline_s: float,
    what: str,
) -> list[list[Judgement]]:
    """Reasoned judgements per request, in order. Raises DeadlineError naming `what`, or the worker's own error."""
    return _fan_out(
        workers,
        requests,
        deadline_s,
        what,
        lambda worker, share: worker.generate.remote(share, group_size, temperature),
    )


def score(workers: Sequence, requests: Sequence[JudgeRequest], deadline_s: float, what: str) -> list[Judgement]:
    """One-token judgements per request, in order. Raises as `generate`."""
    return _fan_out(workers, requests, deadline_s, what, lambda worker, share: worker.score.remote(share))


def _fan_out(workers, requests, deadline_s, what, call) -> list:
    shares = [
        requests[i * len(requests) // len(workers) : (i + 1) * len(requests) // len(workers)]
        for i in range(len(workers))
    ]
    references = [call(worker, list(share)) for worker, share in zip(workers, shares, strict=True) if share]
    return [answer for part in wait_for(references, deadline_s, what) for answer in part]
