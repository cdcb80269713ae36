"""Muon (Jordan et al., 2024) in float32: momentum, orthogonalized per matrix. At 1-3 M parameters it learns about twice
as much per sample as AdamW on one CPU core, where torch.optim.Muon's bfloat16 products are far slower than the whole
training step.
Left out on purpose: distributed sharding; the tiny judge fits one core."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards U V^T of matrix = U S V^T; [.., m, n], singular values end within about [0.7,
    1.2]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[-2] <= matrix.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """For weight matrices only. lr is the root-mean-square size of an element's update, comparable to AdamW's lr
    divided by 0.2."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix that has a gradient; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, members in by_shape.items():
                updates = []
                for p in members:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(shape) ** 0.5  # elements of an orthogonal [m, n] have RMS 1 / sqrt(max(m, n))
                for p, update in zip(members, orthogonalized(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
