"""The held-out set of a loop that distills a teacher: full evaluation rows, a row for the teacher, and how far the
student is from it.

Beside the usual files the run folder holds predictions.npz: "ids", "groups", "teacher" and "student" [I, D, K] log q of
the held-out set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zr_ray.data.files import atomic_file
from zr_ray.data.labels import Label, fingerprints
from zr_ray.functional.disagreement import disagreement
from zr_ray.judging.agreement import full_row
from zr_ray.judging.evaluate import Judged, pooled_groups, prompt_index
from zr_ray.judging.three_way import pair_order
from zr_ray.loops.held_out import HeldOut
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric
from zr_ray.run.result import TEACHER_ROW, value_text

PREDICTIONS_FILE = "predictions.npz"
TEACHER_PAIRS = "eval/teacher_pairs"
"""Metric of an evaluation during training: share of same-prompt pairs ordered as the teacher does."""


class TaughtHeldOut(HeldOut):
    """Held-out rows of a student: full rows, one for the teacher, whose answers come from the run's labels, and the
    difference of the two."""

    def __init__(self, *args, known: dict[str, Label], **kwargs) -> None:
        """known: labels of the held-out set. The rest: as `HeldOut`; a student of one token has no row with
        reasoning."""
        super().__init__(*args, **kwargs)
        self.reasons_before = self.reasoning
        self.teacher = labeled(self.items, known, self.learner.text.rubric)

    def before(self) -> None:
        """Rows of the untrained student, then the teacher's, which costs nothing."""
        super().before()
        self.store(TEACHER_ROW, self.teacher)

    def measured(self, judged: Judged, items: list[AnnotatedImage]) -> dict[str, float]:
        """One point of the curves; "teacher_pairs": share of same-prompt pairs ordered as the teacher does."""
        return super().measured(judged, items) | {"teacher_pairs": self.teacher_pairs(judged, items)}

    def teacher_pairs(self, judged: Judged, items: Sequence[AnnotatedImage]) -> float:
        """Share of same-prompt pairs of the first items that are ordered as the teacher does; nan without any."""
        right, pairs = pair_order(judged.mu, self.teacher.mu[: len(items)], items)
        return float(right.sum() / pairs.sum())

    def unseen(self) -> float:
        """`teacher_pairs` now, on the items of the curves; costs a forward over them."""
        items = self.items[: self.c.items]
        return self.teacher_pairs(self.ask(items, self.reasoning, 0), items)

    def row(self, method: str, judged: Judged) -> dict:
        """One row of result.json, with calibration and likelihood of the distributions."""
        row = full_row(method, judged, self.items, self.c.bootstrap_resamples, self.seed)
        if method == TEACHER_ROW:
            for entry in (row["pooled"], *row["dimensions"].values()):
                entry["outside_mass"] = None  # labels keep the distribution over the bins only
        return row

    def result(self, judged: Judged) -> dict:
        """The keys of `HeldOut.result` and "teacher_gap" (`compared`); leaves predictions.npz."""
        teacher, student = mean_log_q(self.teacher), mean_log_q(judged)
        gap = compared(teacher, student, self.items, judged.rubric, self.c.bootstrap_resamples, self.seed)
        with atomic_file(self.journal.run.path / PREDICTIONS_FILE) as file:
            np.savez_compressed(
                file,
                ids=np.array([i.id for i in self.items]),
                groups=np.array([i.group for i in self.items]),
                teacher=teacher.float().numpy(),
                student=student.float().numpy(),
            )
        pooled = gap["pooled"]
        self.journal.say(
            f"student against teacher: |mu gap| {value_text(pooled, 'mu_gap')} points, KL {value_text(pooled, 'kl')}"
            f" nats, pairs turned over: {value_text(pooled, 'flips')}"
        )
        return super().result(judged) | {"teacher_gap": gap}


def source_of(task) -> dict:
    """What result.json says of a student's origin: its teacher, and how many items it learned from."""
    return {"teacher": str(task.teacher), "distillation": {"items": len(task.items)}}


def labeled(items: Sequence[AnnotatedImage], known: dict[str, Label], rubric: Rubric) -> Judged:
    """A label set's answers on items as an evaluation: one output per question, which cost the tokens of all traces.
    rubric: the label set's."""
    labels = [known[name] for name in fingerprints(items)]
    made = torch.from_numpy(np.stack([label.log_q for label in labels])).double()
    tokens = torch.from_numpy(np.stack([label.tokens for label in labels])).float()
    return Judged(made.unsqueeze(2), tokens.unsqueeze(2), rubric, (("",) * len(rubric.dimensions),) * len(labels))


def mean_log_q(judged: Judged) -> Tensor:
    """[I, D, K] float64 nats, averaged over outputs; nan where there was none."""
    return judged.log_q


def compared(
    teacher: Tensor, student: Tensor, items: Sequence[AnnotatedImage], rubric: Rubric, resamples: int, seed: int
) -> dict:
    """{"pooled": ..., "dimensions": {d: ...}} of `disagreement`. teacher, student: [I, D, K] log q, nan = none."""
    bins = torch.tensor(rubric.bins, dtype=torch.float64)
    prompt = prompt_index([item.group for item in items])
    inside, every = pooled_groups(prompt, len(rubric.dimensions))
    pooled = disagreement(teacher.flatten(0, 1), student.flatten(0, 1), inside, bins, every, resamples, seed)
    return {
        "pooled": pooled,
        "dimensions": {
            name: disagreement(teacher[:, d], student[:, d], prompt, bins, None, resamples, seed)
            for d, name in enumerate(rubric.dimensions)
        },
    }
