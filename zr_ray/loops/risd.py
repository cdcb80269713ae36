"""RISD, Algorithm 2, on every learner rank: the teacher's distribution of a batch, the student's direct one, the KL
between them.

No reasoning tokens pass through the student: its questions share one forward (`models/questions.py`). Offline, the
teacher's distributions come from a label set and no engine runs; online, each rank asks its share of teacher actors for
every batch. Requests are seeded by content, so both see the same distributions. Every choice is a function of (run
seed, step), so a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.risd import RisdSection
from zr_ray.data.encoded import encoded_image
from zr_ray.data.images import load_image
from zr_ray.data.labels import Label, fingerprints
from zr_ray.functional import risd, scores
from zr_ray.judging.ask import generate, workers_of_rank
from zr_ray.judging.evaluate import human_scores
from zr_ray.judging.label import teacher_distributions, teacher_requests
from zr_ray.loops.held_out import by_learner
from zr_ray.loops.held_out_taught import TEACHER_PAIRS, TaughtHeldOut, source_of
from zr_ray.loops.journal import Journal, phase_deadlines
from zr_ray.loops.sums import reduced
from zr_ray.loops.unseen_stop import UnseenStop
from zr_ray.models.judge import JudgeOutputs
from zr_ray.models.questions import QuestionRow
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric
from zr_ray.workers.recovery import Recovery

if TYPE_CHECKING:
    from zr_ray.loops.distillation import DistillationTask


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.models.preprocess import PixelPreprocessor
    from zr_ray.models.questions import QuestionPacker
    from zr_ray.workers.learner import Learner

    task: DistillationTask = loop_config["task"]
    config, c = task.config, task.config.risd
    preprocess = PixelPreprocessor.load(task.judge)
    # the student's questions branch from one prompt, image included; the learner packs whatever rows it is given
    make_packer = lambda judge, text: QuestionPacker(judge.model, text, preprocess)
    learner = Learner(task.judge, config.learner, make_packer=make_packer)
    rubric = learner.text.rubric
    known = task.labels.read()
    hung_s = phase_deadlines(config)
    journal = Journal(task.run_path, learner, config.checkpoint, c.steps, task.started_at, config.run, hung_s)
    ask = by_learner(learner, task)
    held_out = TaughtHeldOut(journal, learner, task, method="risd", reasoning=False, ask=ask, known=known)
    teacher = OnlineTeacher(task, learner, journal.tell) if c.mode == "online" else OfflineTeacher(task.items, known)

    stopping = UnseenStop(journal, learner, c.patience)

    start = done = journal.restore()
    stopping.restore(start)
    if start == 0:
        held_out.before()
        if c.patience:
            stopping.see(0, held_out.unseen())

    for step in journal.steps(start):
        if stopping.over():
            break
        batch = step_items(step, c.items_per_step, len(task.items), config.run.seed)[learner.rank :: learner.world]
        with journal.timer("rollout"):
            log_q, valid = teacher.distributions(batch, step)
            targets = distillation_targets(log_q, valid, [task.items[i] for i in batch], c, rubric)
            # items without a valid label are left out, so the denominator is only known once all ranks have counted
            total, tokens = learner.reduce_sum([float(valid.sum()), float(teacher.tokens)])
        # from disk in every step: the page cache holds what is used, the driver need not send pixels
        images = [load_image(task.items[i].image) for i in batch]
        units = [
            [QuestionRow(image, task.items[i].prompt, rubric.dimensions)]
            for i, image in zip(batch, images, strict=True)
        ]
        with journal.timer("train"):
            stats = learner.accumulate(units, RisdObjective(targets, valid, total, rubric))
            applied = learner.apply(config.learner.rate(step, c.steps))
        metrics = reduced(stats.sums, learner.reduce_sum) | applied
        metrics["teacher/labeled_frac"] = total / (c.items_per_step * len(rubric.dimensions))
        metrics |= held_out.during(step + 1)
        if TEACHER_PAIRS in metrics:
            stopping.see(step + 1, metrics[TEACHER_PAIRS])
        journal.step(done := step + 1, metrics, tokens)
        journal.checkpoint(done, now=stopping.over())
    if c.patience and done not in stopping.seen:
        stopping.see(done, held_out.unseen())
    best = stopping.take_best()
    journal.finish("risd", held_out.finish() | source_of(task) | best | {"steps": done})


class RisdObjective:
    """Mean of Eq. (15)'s KL over all labeled (item, dimension) of the step, on any micro-batch split and any number of
    ranks."""

    def __init__(self, targets: Tensor, valid: Tensor, total: float, rubric: Rubric) -> None:
        """targets: [B, D, K] log q of this rank's items, anything where not valid. valid: [B, D] bool. total: valid
        ones of all ranks. rubric: the judge's."""
        self.targets, self.valid, self.total = targets, valid, max(total, 1.0)
        self.bins = torch.tensor(rubric.bins)

    def __call__(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        log_q = scores.score_log_distribution(outputs.score_logprobs).view(len(units), self.targets.shape[1], -1)
        targets, valid = self.targets[units].to(log_q), self.valid[units].to(log_q.device)
        targets, chosen = targets[valid], log_q[valid]
        loss = risd.score_kl(targets, chosen).sum() / self.total
        with torch.no_grad():
            gap = (scores.expected_score(targets, self.bins) - scores.expected_score(chosen, self.bins)).abs().sum()
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

    def __init__(self, task: DistillationTask, learner, tell: Callable[[str], None]) -> None:
        """tell: gets a line when a teacher actor was lost."""
        from zr_ray.models.judge_text import JudgeText

        self.task, self.config = task, task.config
        self.workers = workers_of_rank(task.workers, learner.rank, learner.world)
        self.recovery = Recovery(task.workers, task.config.rollout, tell)
        self.text = JudgeText(task.teacher)
        self.tokens = 0

    def distributions(self, batch: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """(log_q [B, D, K] nats, valid [B, D] bool) of items by index; `tokens` holds what this batch cost."""
        items = [self.task.items[i] for i in batch]
        asked = [
            (name, item.prompt, encoded_image(item.image))
            for name, item in zip(fingerprints(items), items, strict=True)
        ]
        section, what = self.config.label, f"the teacher's answers of step {step + 1}"
        requests = teacher_requests(self.text, asked, section.seed)
        deadline_s = self.config.rollout.deadline_s
        traces, temperature = max(1, section.traces), 1.0 if section.traces else 0.0
        groups = generate(self.workers, requests, traces, temperature, deadline_s, what, self.recovery)
        log_q, valid, tokens = teacher_distributions(groups, self.text.rubric)
        self.tokens = int(tokens.sum())
        return log_q, valid > 0


def distillation_targets(
    log_q: Tensor, valid: Tensor, items: Sequence[AnnotatedImage], c: RisdSection, rubric: Rubric
) -> Tensor:
    """[B, D, K] log of what the student is to say: the teacher (Eq. 15), tempered or mixed with human scores if
    asked."""
    if c.temperature != 1:
        log_q = risd.temper(log_q, c.temperature)
    if c.label_weight == 0:
        return log_q
    human, bins = human_scores(items, rubric).float(), torch.tensor(rubric.bins)
    has = human.isfinite() & valid
    label_q = scores.two_hot(torch.where(has, human, bins[0]), bins)
    return risd.mix_labels(log_q.exp(), label_q, c.label_weight * has.float()).log()


def step_items(step: int, per_step: int, count: int, seed: int) -> list[int]:
    """Indices of the items of one step: permutations of all `count` items, one after the other, without a break between
    them."""
    slots = (divmod(slot, count) for slot in range(step * per_step, (step + 1) * per_step))
    return [int(_permutation(seed, epoch, count)[index]) for epoch, index in slots]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, count)).permutation(count)
