"""A running reward service gets another judge: Serve starts replicas of it before it stops the old ones, and a probe
proves what answers afterwards.

Left out on purpose: when to do so, and which judge; and services of several judges.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.serve import ServeConfig, ServedJudgeSection
from zr_ray.data.images import load_image
from zr_ray.errors import DeadlineError, JudgeError, RewardError
from zr_ray.models.identity import judge_hash
from zr_ray.records import AnnotatedImage
from zr_ray.run.observe import duration
from zr_ray.serving.client import RewardClient

PROBES = 4
"""Replies of the new judge that are wanted for each replica, one after the other: a handle asks replicas at random."""
CPU_POINTS, GPU_POINTS = 1e-3, 5e-2
"""Rubric points by which a served score may differ from that of the folder itself: the same forward in fp32 in another
batch; on GPUs, or in bf16, rounding shows."""


def with_judge(config: ServeConfig, judge: Path) -> ServeConfig:
    """The service with another judge."""
    return config.model_copy(update={"judge": ServedJudgeSection(path=str(judge))})


def roll(config: ServeConfig, name: str) -> None:
    """Let the application hold the judge of `config`; returns when only its replicas get requests. Requests of others
    are answered all the time, by one judge or the other, and every reply says by which.

    Raises: JudgeError if a new replica does not come up, DeadlineError; the old ones then go on."""
    from ray import serve

    from zr_ray.serving.application import application
    from zr_ray.serving.launch import wait_until_running

    route = config.http.route if config.http.enabled else None
    serve.run_many([serve.RunTarget(application(config), name, route)], wait_for_applications_running=False)
    wait_until_running(name, config.replica.start_deadline_s)


def served_scores(
    target: str, items: Sequence[AnnotatedImage], dimensions: Sequence[str], deadline_s: float
) -> tuple[Tensor, tuple[str, ...]]:
    """What a service says of images: ([I, D] mu, float64 rubric points, nan where one was not scored; I hashes of what
    answered).   Raises: as `RewardClient.score`."""
    images = [torch.from_numpy(load_image(item.image).transpose(2, 0, 1).copy()) for item in items]
    with RewardClient(target, dimensions=dimensions, deadline_s=deadline_s) as client:
        made = client.score(images, [item.prompt for item in items])
    return torch.where(made.ok[:, None], made.mu.double(), torch.nan), made.model_hash


def prove(
    target: str, judge: Path, here: Tensor, items: Sequence[AnnotatedImage], config: ServeConfig, dimensions
) -> dict[str, float]:
    """The service answers as the folder does, all replicas of it: its hash stands in every reply of some in a row, and
    its scores are those of the folder.

    Args: here: [I, D] mu of the folder itself, asked without the service. dimensions: the D axis.
    Returns: {"largest_difference": rubric points, "replies": how many}.
    Raises: DeadlineError if another judge goes on answering, RewardError if the scores differ."""
    wanted, replies = judge_hash(judge), PROBES * config.replica.replicas
    end, worst, in_a_row = time.monotonic() + config.replica.start_deadline_s, 0.0, 0
    while in_a_row < replies:
        mu, hashes = served_scores(target, items, dimensions, config.replica.start_deadline_s)
        if set(hashes) != {wanted}:
            if time.monotonic() > end:
                others = ", ".join(sorted({found[:12] for found in hashes} - {wanted[:12]}))
                raise DeadlineError(
                    f"{target} must answer as {wanted[:12]} after its update, {others} answered"
                    f" for {duration(config.replica.start_deadline_s)}; look at its replicas in the dashboard"
                )
            in_a_row = 0
            time.sleep(0.3)
            continue
        if not torch.equal(mu.isnan(), here.isnan()):
            raise JudgeError(f"{target} must score the images that {judge} scores, it does not")
        worst, in_a_row = max(worst, float((mu - here).abs().nan_to_num(0.0).max())), in_a_row + 1
    allowed = CPU_POINTS if config.replica.gpus == 0 and config.replica.dtype == "float32" else GPU_POINTS
    if worst > allowed:
        raise RewardError(
            f"{target} must score images as {judge} does within {allowed:g} points, its scores are {worst:.2g} off;"
            " report this"
        )
    return {"largest_difference": worst, "replies": float(replies)}


def require_version(hashes: Sequence[str], known: Mapping[str, int], number: int) -> None:
    """Raises RewardError unless version `number` alone has answered. known: hash -> number."""
    others = sorted({f"v{known[h]}" if h in known else h[:12] for h in hashes if known.get(h) != number})
    if others:
        raise RewardError(f"the run's service must answer as version {number} of its reward, {', '.join(others)} did")
