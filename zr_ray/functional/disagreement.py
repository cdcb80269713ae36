"""How far a student's score distributions are from its teacher's: the quality watch of a deployed judge (Z-Reward,
section 4).

Axes: N items, K bins, P prompts (groups). Items where either distribution is nan take no part; their prompts stay in
the draws of the intervals. Left out on purpose: agreement with human scores (`metrics.py`); this needs none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zr_ray.functional.correlation import plcc
from zr_ray.functional.intervals import defined, defined_interval, ratio_interval
from zr_ray.functional.pairs import hpa_by_group
from zr_ray.functional.risd import score_kl


def disagreement(
    teacher_log_q: Tensor,
    student_log_q: Tensor,
    group: Tensor,
    bins: Tensor,
    prompt: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float | list[float] | None]:
    """Teacher against student on the same items.

        mu_gap    mean |mu_phi - mu_T|, rubric points          mu_bias   mean (mu_phi - mu_T): above 0 the student is
        kinder
        kl        mean KL(q_T || q_phi), nats (Eq. 15)         plcc      of mu_phi with mu_T
        flips     share of same-group pairs, untied for the teacher, that the student orders differently (or ties)

    Args: teacher_log_q, student_log_q: [N, K] normalized nats. group: [N] long, whose items are compared. bins: [K]
        rubric points. prompt: [N] long, what intervals resample, a union of groups; None: the group. resamples, seed:
        of the bootstrap.
    Returns: those five, `mu_gap_ci` and `flips_ci` (95 %), "items" and "pairs"; undefined values are None.
    Raises: ValueError if shapes differ."""
    if teacher_log_q.shape != student_log_q.shape or len(group) != len(teacher_log_q):
        shapes = [tuple(t.shape) for t in (teacher_log_q, student_log_q, group)]
        raise ValueError(f"teacher and student must be [N, K] of one shape with [N] groups, got {shapes}")
    prompt = group if prompt is None else prompt
    teacher_log_q, student_log_q, bins = teacher_log_q.double(), student_log_q.double(), bins.double()
    known = teacher_log_q.isfinite().any(-1) & student_log_q.isfinite().any(-1)
    teacher, student = teacher_log_q.exp() @ bins, student_log_q.exp() @ bins
    nothing = torch.full_like(teacher, math.nan)
    same, total = hpa_by_group(student, torch.where(known, teacher, nothing), group, 0.0, prompt)
    labels, place = prompt.unique(return_inverse=True)
    gap = torch.where(known, (student - teacher).abs(), torch.zeros_like(teacher))
    zeros = torch.zeros(len(labels), dtype=torch.float64)
    gaps, counts = zeros.index_add(0, place, gap), zeros.index_add(0, place, known.double())
    difference = (student - teacher)[known]
    return {
        "mu_gap": defined(difference.abs().mean()),
        "mu_gap_ci": defined_interval(ratio_interval(gaps, counts, resamples, seed)),
        "mu_bias": defined(difference.mean()),
        "kl": defined(score_kl(teacher_log_q[known], student_log_q[known]).mean()),
        "plcc": defined(plcc(student[known], teacher[known])),
        "flips": defined(1 - same.sum() / total.sum()),
        "flips_ci": defined_interval(ratio_interval(total - same, total, resamples, seed)),
        "items": int(known.sum()),
        "pairs": int(total.sum()),
    }
