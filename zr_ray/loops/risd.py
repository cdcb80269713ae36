"""RISD, Algorithm 2, on every learner rank: the teacher's distribution of a batch, the student's direct one, the KL
between them.

No reasoning tokens pass through the student: its four questions share one forward (`models/questions.py`). Offline, the
teacher's distributions come from a label set and no engine runs; online, each rank asks its share of teacher actors for
every batch. Requests are seeded by content, so both see the same distributions. Every choice is a function of (run
seed, step), so a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.risd import RisdSection
from zr_ray.data.aggregate import aggregate_scores
from zr_ray.data.images import load_image
from zr_ray.data.labels import Label, fingerprints
from zr_ray.functional import risd, scores
from zr_ray.functional.schedule import learning_rate
from zr_ray.judging.ask import generate, workers_of_rank
from zr_ray.judging.label import teacher_distributions, teacher_requests
from zr_ray.loops.distillation_journal import DirectJournal
from zr_ray.loops.objective import reduced
from zr_ray.models.judge import JudgeOutputs
from zr_ray.models.questions import QuestionRow
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, SCORE_BINS

if TYPE_CHECKING:
    from zr_ray.loops.distillation import DistillationTask

BINS = torch.tensor(SCORE_BINS)


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.models.preprocess import PixelPreprocessor
    from zr_ray.models.questions import QuestionPacker
    from zr_ray.workers.learner import Learner

    task: DistillationTask = loop_config["task"]
    config, c = task.config, task.config.risd
    learner = Learner(task.judge, config.learner)
    learner.packer = QuestionPacker(learner.engine.module.model, learner.text, PixelPreprocessor.load(task.judge))
    known = task.labels.read()
    journal = DirectJournal(task, learner, method="risd", total_steps=c.steps, reasoning=False, known=known)
    teacher = OnlineTeacher(task, learner) if c.mode == "online" else OfflineTeacher(task.items, known)

    start = journal.restore()
    if start == 0:
        journal.evaluate_base()

    for step in range(start, c.steps):
        batch = step_items(step, c.items_per_step, len(task.items), config.run.seed)[learner.rank :: learner.world]
        with journal.timer("rollout"):
            log_q, valid = teacher.distributions(batch, step)
            targets = distillation_targets(log_q, valid, [task.items[i] for i in batch], c)
            total, tokens = learner.reduce_sum([float(valid.sum()), float(teacher.tokens)])
        units = [[QuestionRow(load_image(task.items[i].image), task.items[i].prompt)] for i in batch]
        with journal.timer("train"):
            stats = learner.accumulate(units, RisdObjective(targets, valid, total))
            applied = learner.apply(learning_rate(step, c.steps, config.learner))
        metrics = reduced(stats.sums, learner.reduce_sum) | applied
        metrics["teacher/labelled_frac"] = total / (c.items_per_step * len(DIMENSIONS))
        if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0 and step + 1 < c.steps:
            metrics |= journal.evaluate_during(())
        journal.step(step + 1, metrics, tokens)
        if (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == c.steps:
            journal.save(step + 1)
    journal.finish()


class RisdObjective:
    """Mean of Eq. (15)'s KL over all labelled (item, dimension) of the step, on any micro-batch split and any number of
    ranks."""

    def __init__(self, targets: Tensor, valid: Tensor, total: float) -> None:
        """targets: [B, D, K] log q of this rank's items, anything where not valid. valid: [B, D] bool. total: valid
        ones of all ranks."""
        self.targets, self.valid, self.total = targets, valid, max(total, 1.0)

    def __call__(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        log_q = scores.score_log_distribution(outputs.score_logprobs).view(len(units), len(DIMENSIONS), -1)
        targets, valid = self.targets[units].to(log_q), self.valid[units].to(log_q.device)
        targets, chosen = targets[valid], log_q[valid]
        loss = risd.score_kl(targets, chosen).sum() / self.total
        with torch.no_grad():
            gap = (scores.expected_score(targets, BINS) - scores.expected_score(chosen, BINS)).abs().sum()
            sums = {
                "loss/total": loss.detach(),
                "student/mu_gap": gap / self.total,
                "score/entropy": scores.score_entropy(chosen).sum() / self.total,
                "score/outside_mass": (
                    scores.outside_mass(outputs.score_logprobs).view_as(valid)[valid].sum() / self.total
                ),
            }
        return loss, {name: float(value) for name, value in sums.items()}


class OfflineTeacher:
    """Distributions from a label set."""

    tokens = 0

    def __init__(self, items: Sequence[AnnotatedImage], known: dict[str, Label]) -> None:
        labels = [known[name] for name in fingerprints(items)]
        self.log_q = torch.from_numpy(np.stack([label.log_q for label in labels]))
        self.valid = torch.from_numpy(np.stack([label.valid for label in labels])) > 0

    def distributions(self, batch: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """(log_q [B, D, K] nats, valid [B, D] bool) of items by index."""
        return self.log_q[list(batch)], self.valid[list(batch)]


class OnlineTeacher:
    """Distributions from teacher actors, asked when they are needed (Algorithm 2)."""

    def __init__(self, task: DistillationTask, learner) -> None:
        from zr_ray.models.judge_text import JudgeText

        self.task, self.config = task, task.config
        self.workers = workers_of_rank(task.workers, learner.rank, learner.world)
        self.text = JudgeText(task.teacher)
        self.tokens = 0

    def distributions(self, batch: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """As OfflineTeacher; `tokens` holds what this batch cost."""
        items = [self.task.items[i] for i in batch]
        asked = [
            (name, item.prompt, load_image(item.image)) for name, item in zip(fingerprints(items), items, strict=True)
        ]
        section, what = self.config.label, f"the teacher's answers of step {step + 1}"
        requests = teacher_requests(self.text, asked, section.seed)
        deadline_s = self.config.rollout.deadline_s
        groups = generate(
            self.workers, requests, max(1, section.traces), 1.0 if section.traces else 0.0, deadline_s, what
        )
        log_q, valid, tokens = teacher_distributions(groups)
        self.tokens = int(tokens.sum())
        return log_q, valid > 0


def distillation_targets(log_q: Tensor, valid: Tensor, items: Sequence[AnnotatedImage], c: RisdSection) -> Tensor:
    """[B, D, K] log of what the student is to say: the teacher (Eq. 15), tempered or mixed with human scores if
    asked."""
    if c.temperature != 1:
        log_q = risd.temper(log_q, c.temperature)
    if c.label_weight == 0:
        return log_q
    human = torch.tensor(
        [[aggregate_scores(item.scores[d]) if d in item.scores else float("nan") for d in DIMENSIONS] for item in items]
    )
    has = human.isfinite() & valid
    label_q = scores.two_hot(torch.where(has, human, BINS[0]), BINS)
    return risd.mix_labels(log_q.exp(), label_q, c.label_weight * has.float()).log()


def step_items(step: int, per_step: int, count: int, seed: int) -> list[int]:
    """Indices of the items of one step: permutations of all `count` items, one after the other, without a break between
    them."""
    slots = (divmod(slot, count) for slot in range(step * per_step, (step + 1) * per_step))
    return [int(_permutation(seed, epoch, count)[index]) for epoch, index in slots]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)
