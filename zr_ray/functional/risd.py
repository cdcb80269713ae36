"""Reasoning-internalised score distillation (Z-Reward, arXiv 2606.09076, section 4, Eq. 15 and Algorithm 2).

Axes: B pairs, J = 2 sides (0 winner, 1 loser), G group, M teacher traces, T tokens, K bins, D dimensions; `...` any
leading shape. The paper's recipe is `score_kl` alone on one trace. Label mixing, temperature and M > 1 depart from it
and are off unless called.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def score_kl(teacher_log_q: Tensor, student_log_q: Tensor) -> Tensor:
    """KL(q_T || q_phi) over the score bins, the loss of Eq. 15 before its mean over items.

        KL = sum_k q_T(k) (log q_T(k) - log q_phi(k))

    A bin with q_T = 0 adds 0 whatever the student says. The teacher is a constant: no gradient reaches it.
    Args: teacher_log_q, student_log_q: [..., K] normalized, nats.
    Returns: [...] nats, at least 0, 0 at equality; inf if the student gives 0 where the teacher does not.
    Raises: ValueError if the shapes differ."""
    if teacher_log_q.shape != student_log_q.shape:
        raise ValueError(
            f"teacher and student need one shape, got {tuple(teacher_log_q.shape)} and {tuple(student_log_q.shape)}"
        )
    teacher_log_q = teacher_log_q.detach()
    teacher_q = teacher_log_q.exp()
    zeros = torch.zeros_like(teacher_q)
    counted = ~(teacher_q == 0)  # nan stays visible
    difference = torch.where(counted, teacher_log_q, zeros) - torch.where(counted, student_log_q, zeros)
    return (teacher_q * difference).sum(-1)


def mix_labels(teacher_q: Tensor, label_q: Tensor, weight: float | Tensor) -> Tensor:
    """(1 - weight) q_T + weight q_label: human scores beside the teacher's distribution.

    Departs from the paper, which distils the teacher only.
    Args: teacher_q, label_q: [..., K] probabilities (label_q from `two_hot` or `gaussian_soft_label`; may be nan where
        weight is 0, an item without a human score). weight: in [0, 1], a number or [...] per item.
    Returns: [..., K] probabilities; take `.log()` for `score_kl`.   Raises: ValueError if a weight is outside [0,
    1]."""
    weight = torch.as_tensor(weight, dtype=teacher_q.dtype, device=teacher_q.device).unsqueeze(-1)
    if not ((weight >= 0) & (weight <= 1)).all():
        raise ValueError(f"label weight must be in [0, 1], got {weight.squeeze(-1).tolist()}")
    return torch.where(weight > 0, (1 - weight) * teacher_q + weight * label_q, teacher_q)


def temper(log_q: Tensor, temperature: float) -> Tensor:
    """log of q^(1/temperature), normalized: above 1 flattens the teacher, below 1 sharpens it. Departs from the paper
    (1).

    Args: log_q: [..., K] nats. temperature: above 0.   Returns: [..., K] log q, nats.   Raises: ValueError if
    temperature <= 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return torch.log_softmax(log_q / temperature, dim=-1)


def average_distributions(log_q: Tensor, valid: Tensor | None = None) -> Tensor:
    """log of the mean over M reasoning traces of the teacher's probabilities (a mixture, not the mean of logits).

        log q(k) = log (1/M) sum_m q_m(k)

    Ours: the paper queries the teacher once (M = 1, which this returns unchanged).
    Args: log_q: [M, ..., K] nats. valid: [M, ...] bool or None; malformed traces stay out of the mean.
    Returns: [..., K] log q, nats; nan for an item without one valid trace: drop it.   Raises: ValueError if valid has
    another shape."""
    if valid is None:
        return torch.logsumexp(log_q, 0) - math.log(log_q.shape[0])
    if valid.shape != log_q.shape[:-1]:
        raise ValueError(f"valid must be [M, ...] = {tuple(log_q.shape[:-1])}, got {tuple(valid.shape)}")
    kept = torch.where(valid.unsqueeze(-1), log_q, torch.full_like(log_q, -torch.inf))
    count = valid.sum(0).unsqueeze(-1).to(log_q)
    return torch.where(count > 0, torch.logsumexp(kept, 0) - count.log(), torch.full_like(kept[0], torch.nan))
