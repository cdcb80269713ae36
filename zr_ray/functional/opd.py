"""On-policy distillation, the token-by-token baseline of RISD (Z-Reward, arXiv 2606.09076, Eq. 18-19).

The student samples its own reasoning and score; the teacher scores the prefixes the student visited.
Axes: N sequences, T tokens. Log-probs are in nats. A masked token may hold nan or inf: it gets a zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def opd_advantages(teacher_logprobs: Tensor, student_old_logprobs: Tensor) -> Tensor:
    """A_t = log pi_teacher(y_t) - log pi_student_old(y_t), stop-gradient (Eq. 18).

    Its expectation over the student's tokens is -KL(student || teacher): the sampled reverse KL.
    Args: teacher_logprobs, student_old_logprobs: [N, T] nats, of the tokens the student sampled.
    Returns: [N, T] nats, detached; 0 where both agree.   Raises: ValueError if the shapes differ."""
    if teacher_logprobs.shape != student_old_logprobs.shape:
        raise ValueError(
            f"teacher and student need the same tokens, got {tuple(teacher_logprobs.shape)} and"
            f" {tuple(student_old_logprobs.shape)}"
        )
    return (teacher_logprobs - student_old_logprobs).detach()


def opd_terms(student_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Per-token loss -A_t log pi_student(y_t); with `grpo.aggregate_tokens(..., "token_mean")` it micro-batches to
    `opd_loss`.

    Args: student_logprobs: [N, T] learner, nats. advantages: [N, T] of `opd_advantages`. mask: [N, T] bool, generated
    tokens.
    Returns: [N, T], 0 outside the mask, gradient into student_logprobs only.   Raises: ValueError if the shapes
    differ."""
    if not student_logprobs.shape == advantages.shape == mask.shape:
        shapes = [tuple(t.shape) for t in (student_logprobs, advantages, mask)]
        raise ValueError(f"student_logprobs, advantages and mask must be [N, T] of one shape, got {shapes}")
    zeros = torch.zeros_like(student_logprobs)
    kept_advantages = torch.where(mask, advantages.detach().to(zeros), zeros)
    return -kept_advantages * torch.where(mask, student_logprobs, zeros)


def opd_loss(student_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """L = -mean_t A_t log pi_student(y_t) over all generated tokens (Eq. 19).

    Its VALUE has no meaning (the gradient does); watch `-advantages[mask].mean()`, the sampled reverse KL, instead.
    Args, Raises: as `opd_terms`.   Returns: scalar; 0 if the mask is empty."""
    return opd_terms(student_logprobs, advantages, mask).sum() / mask.sum().clamp_min(1)
