"""What a client's call returns, put together from the replies of its parts.

Left out on purpose: asking; see `client.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zr_ray.errors import RewardError
from zr_ray.records import RewardReply


@dataclass(frozen=True)
class Scores:
    """Replies put together, in the order of the images. nan where status is not "ok"."""

    q: Tensor
    """[B, D, K]."""
    mu: Tensor
    sigma: Tensor
    entropy: Tensor
    outside: Tensor
    """[B, D] each; as in RewardReply."""
    status: tuple[str, ...]
    reason: tuple[str, ...]
    model_hash: tuple[str, ...]
    """B: during a rolling update the parts of one call may come from two judges."""
    dimensions: tuple[str, ...] = ()
    """D names."""
    bins: tuple[float, ...] = ()
    """K rubric points, the judge's scale."""
    reward: Tensor | None = None
    """[B] float64."""
    gradients: tuple[Tensor, ...] | None = None
    """B tensors [3, H, W], dR/dimage with its scale put back; nan where not scored."""

    @property
    def ok(self) -> Tensor:
        """[B] bool."""
        return torch.tensor([status == "ok" for status in self.status])


def joined(replies: Sequence[RewardReply], images) -> Scores:
    """Replies of consecutive parts of a call as one. Raises RewardError if they came from unlike judges."""
    axes = {(reply.dimensions, reply.bins) for reply in replies}
    if len(axes) > 1:
        raise RewardError(
            "the parts of a call must come from judges with the same dimensions and bins, the service changed its judge"
            f" in between: {sorted(axes)}; call again"
        )
    columns = {
        name: torch.from_numpy(np.concatenate([getattr(r, name) for r in replies]))
        for name in ("q", "mu", "sigma", "entropy", "outside")
    }
    gradient = {}
    if replies[0].reward is not None:
        pairs = [(g, s) for r in replies for g, s in zip(r.gradients, r.scale, strict=True)]
        gradients = tuple(
            torch.full(image.shape, torch.nan) if g is None else torch.from_numpy(np.array(g) * np.asarray(s, g.dtype))
            for image, (g, s) in zip(images, pairs, strict=True)
        )
        gradient = {"reward": torch.from_numpy(np.concatenate([r.reward for r in replies])), "gradients": gradients}
    return Scores(
        **columns,
        status=sum((tuple(r.status) for r in replies), ()),
        reason=sum((tuple(r.reason) for r in replies), ()),
        model_hash=tuple(r.identity.model_hash for r in replies for _ in r.status),
        dimensions=replies[0].dimensions,
        bins=replies[0].bins,
        **gradient,
    )
