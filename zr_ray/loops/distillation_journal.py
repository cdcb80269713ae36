"""The journal of a run that distils a teacher: full evaluation rows, a row for the teacher, and how far the student is
from it.

Beside the usual files the run folder holds predictions.npz: "ids", "groups", "teacher" and "student" [I, D, K] log q of
the held-out set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zr_ray.data.labels import Label, fingerprints
from zr_ray.functional.disagreement import disagreement
from zr_ray.functional.scores import score_log_distribution
from zr_ray.judging.agreement import full_row
from zr_ray.judging.direct import judge_directly
from zr_ray.judging.evaluate import BINS, Judged
from zr_ray.loops.journal import Journal
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS

TEACHER_ROW = "teacher, reasoning"
PREDICTIONS_FILE = "predictions.npz"


class DistillationJournal(Journal):
    """Journal with a teacher row, for a student that reasons. The teacher's answers come from the run's labels."""

    def __init__(self, *args, known: dict[str, Label], **kwargs) -> None:
        """known: labels of the held-out set; the rest as `Journal`."""
        super().__init__(*args, **kwargs)
        self.teacher = labelled(self.task.test, known)
        self._last: Judged | None = None

    def evaluate_base(self) -> None:
        """As `Journal`, then the teacher's row, which costs nothing."""
        super().evaluate_base()
        self.store(TEACHER_ROW, self.teacher)

    def row(self, method: str, judged: Judged, items: Sequence[AnnotatedImage]) -> dict:
        """With calibration and likelihood of the distributions."""
        row = full_row(method, judged, items, self.config.evaluation.bootstrap_resamples, self.config.run.seed)
        if method == TEACHER_ROW:
            for entry in (row["pooled"], *row["dimensions"].values()):
                entry["outside_mass"] = None  # labels keep the distribution over the bins only
        return row

    def store(self, method: str, judged: Judged) -> None:
        """Keeps the answers, too: `finish` compares the last ones with the teacher's."""
        super().store(method, judged)
        self._last = judged

    def finish(self) -> None:
        """As `Journal`; result.json gains "teacher_gap" (`compared`), the folder predictions.npz."""
        super().finish()
        if not self.is_writer:
            return
        items, c = list(self.task.test), self.config
        gap = compared(
            mean_log_q(self.teacher), mean_log_q(self._last), items, c.evaluation.bootstrap_resamples, c.run.seed
        )
        temporary = self.run.path / f".{PREDICTIONS_FILE}"
        with open(temporary, "wb") as file:
            answers = {
                "teacher": mean_log_q(self.teacher).float().numpy(),
                "student": mean_log_q(self._last).float().numpy(),
            }
            np.savez_compressed(
                file, ids=np.array([i.id for i in items]), groups=np.array([i.group for i in items]), **answers
            )
        os.replace(temporary, self.run.path / PREDICTIONS_FILE)
        self.run.write_result(
            self.run.read_result()
            | {"teacher_gap": gap, "teacher": str(self.task.teacher), "distillation": {"items": len(self.task.items)}}
        )
        pooled = gap["pooled"]
        self.say(
            f"student against teacher: |mu gap| {pooled['mu_gap']:.3f} points, KL {pooled['kl']:.4f} nats, "
            f"{pooled['flips']:.1%} of pairs turned over"
        )


class DirectJournal(DistillationJournal):
    """The same for a student of one token: it is judged by the learner's own forward, without an engine."""

    def evaluate_base(self) -> None:
        """The rows of the untrained student (none if evaluation.before is false) and of the teacher."""
        if self.config.evaluation.before:
            self._judge_and_store("zero-shot", reasoning=False, samples=0)
        self.store(TEACHER_ROW, self.teacher)

    def _judge(self, items, reasoning: bool, samples: int) -> Judged:
        return judge_directly(self.learner, items, self.config.evaluation.batch_items)


def labelled(items: Sequence[AnnotatedImage], known: dict[str, Label]) -> Judged:
    """A label set's answers on items as an evaluation: one output per question, which cost the tokens of all traces."""
    labels = [known[name] for name in fingerprints(items)]
    made = torch.from_numpy(np.stack([label.log_q for label in labels])).double()
    tokens = torch.from_numpy(np.stack([label.tokens for label in labels])).float()
    return Judged(made.unsqueeze(2), tokens.unsqueeze(2), (("",) * len(DIMENSIONS),) * len(labels))


def mean_log_q(judged: Judged) -> Tensor:
    """[I, D, K] float64 nats, averaged over outputs; nan where there was none."""
    return score_log_distribution(judged.label_logprobs[:, :, 0]) if judged.samples == 1 else judged.q.log()


def compared(teacher: Tensor, student: Tensor, items: Sequence[AnnotatedImage], resamples: int, seed: int) -> dict:
    """{"pooled": ..., "dimensions": {d: ...}} of `disagreement`. teacher, student: [I, D, K] log q, nan = none."""
    names = sorted({item.group for item in items})
    prompt = torch.tensor([names.index(item.group) for item in items])
    every = prompt[:, None].expand(-1, len(DIMENSIONS))
    inside = every * len(DIMENSIONS) + torch.arange(len(DIMENSIONS))
    pooled = disagreement(
        teacher.flatten(0, 1), student.flatten(0, 1), inside.flatten(), BINS, every.flatten(), resamples, seed
    )
    return {
        "pooled": pooled,
        "dimensions": {
            name: disagreement(teacher[:, d], student[:, d], prompt, BINS, None, resamples, seed)
            for d, name in enumerate(DIMENSIONS)
        },
    }
