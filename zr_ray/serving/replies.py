"""Requests to items, and answers back to replies: nan where there is no score, never 0.

Left out on purpose: computing and transport.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zr_ray.records import ItemFault, JudgeIdentity, RewardReply, RewardRequest
from zr_ray.rubric import Rubric


def item_weights(request: RewardRequest) -> list[tuple[float, ...] | None]:
    """Per item its [D'] weights, or None for scores only."""
    count = len(request.prompts)
    if request.weights is None:
        return [None] * count
    weights = np.broadcast_to(np.asarray(request.weights, np.float64), (count, len(request.dimensions)))
    return [tuple(row) for row in weights.tolist()]


def reply_of(request: RewardRequest, identity: JudgeIdentity, answers: Sequence, rubric: Rubric) -> RewardReply:
    """The reply to a request from its items' answers (RewardAnswer or ItemFault), in order. rubric: the judge's."""
    count, dims = len(answers), len(request.dimensions)
    good = [i for i, answer in enumerate(answers) if not isinstance(answer, ItemFault)]
    dtype = answers[good[0]].q.dtype if good else np.float32

    def column(name: str, *shape: int) -> np.ndarray:
        full = np.full((count, *shape), np.nan, dtype)
        if good:
            full[good] = np.stack([getattr(answers[i], name) for i in good])
        return full

    gradient = {}
    if request.weights is not None:
        scored = {i: answers[i] for i in good}
        gradient = {
            "reward": np.array([scored[i].reward if i in scored else np.nan for i in range(count)], np.float64),
            "gradients": tuple(scored[i].gradient if i in scored else None for i in range(count)),
            "scale": np.array([scored[i].scale if i in scored else np.nan for i in range(count)], np.float64),
        }
    return RewardReply(
        request_id=request.request_id,
        identity=identity,
        dimensions=tuple(request.dimensions),
        status=tuple(a.status if isinstance(a, ItemFault) else "ok" for a in answers),
        reason=tuple(a.reason if isinstance(a, ItemFault) else "" for a in answers),
        bins=rubric.bins,
        q=column("q", dims, len(rubric.bins)),
        mu=column("mu", dims),
        sigma=column("sigma", dims),
        entropy=column("entropy", dims),
        outside=column("outside", dims),
        **gradient,
    )
