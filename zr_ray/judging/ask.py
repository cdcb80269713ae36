"""Asking rollout actors: questions from annotated images, fanned out over workers, answers back in order.

Used by every loop. Works on Ray actor handles of `RolloutWorker`; each learner rank asks its own share of them. With a
`Recovery` a lost worker is brought back and its share asked for again; without one its loss is an error.
Left out on purpose: load balancing. Requests of a step are alike, so contiguous equal shares keep all workers busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from zr_ray.data.encoded import encoded_image
from zr_ray.errors import RolloutError
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage, EncodedImage, Judgement, JudgeRequest, PreferencePair, ProbeQuestions
from zr_ray.run.observe import wait_for
from zr_ray.workers.recovery import Recovery


def workers_of_rank(workers: Sequence, rank: int, world: int) -> list:
    """The rollout workers that rank asks: its share when there are at least as many as ranks, else one shared
    worker."""
    return list(workers[rank::world]) or [workers[rank % len(workers)]]


def request_seed(*parts: int) -> int:
    """Seed of one request from (run seed, step, index, ...): stateless, so a resumed run samples the same traces."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] % (2**31 - 1024))


def question(
    text: JudgeText,
    item: AnnotatedImage,
    dimension: str,
    seed: int,
    direct: bool = False,
    image: EncodedImage | None = None,
) -> JudgeRequest:
    """The request for one item in one dimension. image: the item's, for several questions about it; None: read here."""
    return JudgeRequest(
        f"{item.id}/{dimension}",
        text.question(item.prompt, dimension, direct),
        encoded_image(item.image) if image is None else image,
        seed,
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
    recovery: Recovery | None = None,
) -> list[list[Judgement]]:
    """Reasoned judgements per request, in order; no group lost, none twice.

    Raises: DeadlineError naming `what`; the worker's own error; RolloutError if answers and requests do not line up."""
    version = recovery.version if recovery is not None else None
    parts = _fan_out(
        workers,
        requests,
        deadline_s,
        what,
        lambda worker, share: worker.generate.remote(share, group_size, temperature, None, version),
        recovery,
    )
    groups = [group for part in parts for group in part]
    require_groups(requests, groups, group_size)
    return groups


def generate_with_probe(
    workers: Sequence,
    requests: Sequence[JudgeRequest],
    group_size: int,
    probe: ProbeQuestions,
    deadline_s: float,
    what: str,
    recovery: Recovery,
) -> tuple[list[list[Judgement]], list[list[Judgement]]]:
    """Sampled judgements of the current weights, and from the same batch of each engine its answers to a push's
    questions.

    Returns: groups per request, in order; per worker, one answer a question. Raises as `generate`."""

    def call(worker, share):
        return worker.generate.remote(share, group_size, 1.0, None, recovery.version, 0, False, probe)

    parts = _fan_out(workers, requests, deadline_s, what, call, recovery, idle_too=True)
    questions = len(probe.all)
    groups = [group for part in parts for group in part[:-questions]]
    require_groups(requests, groups, group_size)
    answers = [part[-questions:] for part in parts]
    for answered in answers:
        require_groups(probe.all, answered, 1)
    return groups, [[group[0] for group in answered] for answered in answers]


def score(
    workers: Sequence, requests: Sequence[JudgeRequest], deadline_s: float, what: str, recovery: Recovery | None = None
) -> list[Judgement]:
    """One-token judgements per request, in order. Raises as `generate`."""
    version = recovery.version if recovery is not None else None
    parts = _fan_out(
        workers, requests, deadline_s, what, lambda worker, share: worker.score.remote(share, version), recovery
    )
    answers = [answer for part in parts for answer in part]
    require_groups(requests, [[answer] for answer in answers], 1)
    return answers


def require_groups(requests: Sequence[JudgeRequest], groups: Sequence[Sequence[Judgement]], group_size: int) -> None:
    """Every request has its one group of samples 0 .. group_size - 1, in order.   Raises: RolloutError."""
    if len(groups) != len(requests):
        raise RolloutError(f"{len(requests)} groups were asked for, {len(groups)} came: some are lost or came twice")
    for request, group in zip(requests, groups, strict=True):
        if [(j.key, j.sample) for j in group] != [(request.key, sample) for sample in range(group_size)]:
            came = ", ".join(f"{j.key} {j.sample}" for j in group)
            raise RolloutError(f"samples 0 to {group_size - 1} of {request.key} were asked for, came: {came}")


def _fan_out(
    workers: Sequence,
    requests: Sequence[JudgeRequest],
    deadline_s: float,
    what: str,
    call: Callable,
    recovery: Recovery | None,
    idle_too: bool = False,
) -> list[list]:
    """Each worker's answers to its share; workers without a share are asked only if `idle_too`."""
    shares = [
        requests[i * len(requests) // len(workers) : (i + 1) * len(requests) // len(workers)]
        for i in range(len(workers))
    ]
    calls = [
        (worker, lambda worker=worker, share=list(share): call(worker, share))
        for worker, share in zip(workers, shares, strict=True)
        if share or idle_too
    ]
    if recovery is None:
        return wait_for([send() for _, send in calls], deadline_s, what)
    return recovery.settle(calls, deadline_s, what)
