"""OPD, Eq. (18)-(19), on every learner rank: the student samples reasoning and score, the teacher scores the tokens,
one update, push.

    A_t = log pi_teacher(y_t) - log pi_student_old(y_t),   L = -mean_t A_t log pi_student(y_t)

The teacher is a frozen copy beside each learner: it reads the student's own rows in one forward, its tokens are the
student's tokens. Questions are drawn like RISD's items, in one dimension each; no human score is used. Every choice is
a function of (run seed, step).
Left out on purpose: a teacher that is sharded over ranks; it is held whole, in the learner's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.opd import OpdConfig
from zr_ray.errors import JudgeError
from zr_ray.functional import opd, scores
from zr_ray.judging.ask import generate, question, request_seed, workers_of_rank
from zr_ray.loops.held_out import by_engines
from zr_ray.loops.held_out_taught import TaughtHeldOut, source_of
from zr_ray.loops.journal import Journal, phase_deadlines
from zr_ray.loops.push import WeightPush
from zr_ray.loops.risd import step_items
from zr_ray.loops.sums import reduced
from zr_ray.models.judge import JudgeOutputs, load_packed_judge
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.records import Judgement
from zr_ray.workers.recovery import Recovery

if TYPE_CHECKING:
    from zr_ray.loops.distillation import DistillationTask


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.workers.learner import Learner

    task: DistillationTask = loop_config["task"]
    config: OpdConfig = task.config
    c = config.opd
    learner = Learner(task.judge, config.learner)
    teacher = FrozenTeacher(task.teacher, learner)
    hung_s = phase_deadlines(config)
    journal = Journal(task.run_path, learner, config.checkpoint, c.steps, task.started_at, config.run, hung_s)
    recovery = Recovery(task.workers, config.rollout, journal.tell)
    ask, known = by_engines(learner, task, recovery), task.labels.read()
    held_out = TaughtHeldOut(journal, learner, task, method="opd", reasoning=True, ask=ask, known=known)
    push = WeightPush.of_run(task, recovery, learner.text, task.items[0])
    workers = workers_of_rank(task.workers, learner.rank, learner.world)

    dimensions = learner.text.rubric.dimensions

    start = journal.restore()
    journal.note(push(learner, start))
    if start == 0:
        held_out.before()

    for step in journal.steps(start):
        with journal.timer("rollout"):
            # all ranks draw the whole step and take their share by position, which also seeds the request
            asked = step_questions(step, c.questions_per_step, len(task.items), len(dimensions), config.run.seed)
            mine = range(learner.rank, len(asked), learner.world)
            requests = [
                question(
                    learner.text,
                    task.items[asked[n][0]],
                    dimensions[asked[n][1]],
                    request_seed(config.run.seed, step, n),
                )
                for n in mine
            ]
            what = f"rollouts of step {step + 1}"
            groups = generate(workers, requests, c.group_size, 1.0, config.rollout.deadline_s, what, recovery)
        rows = [
            Row(
                request.token_ids, request.image, tuple(j.token_ids for j in group), tuple(j.score_index for j in group)
            )
            for request, group in zip(requests, groups, strict=True)
        ]
        with journal.timer("teacher"):
            teacher_logprobs = teacher.logprobs(rows)
        totals = reduced(rollout_sums(groups, teacher_logprobs), learner.reduce_sum)
        with journal.timer("train"):
            push.rest(learner)
            objective = OpdObjective(teacher_logprobs, [j for group in groups for j in group], c.group_size, totals)
            stats = learner.accumulate([[row] for row in rows], objective)
            applied = learner.apply(config.learner.rate(step, c.steps))
        metrics = reduced(stats.sums, learner.reduce_sum) | applied | rollout_means(totals)
        metrics["policy/ratio_max_abs_diff"] = learner.reduce_max(objective.ratio_max_abs_diff)
        with journal.timer("push"):
            metrics |= push(learner, step + 1)
        metrics |= held_out.during(step + 1)
        journal.step(step + 1, metrics, totals["tokens"])
        journal.checkpoint(step + 1)
    journal.finish("opd", held_out.finish() | source_of(task))


def step_questions(step: int, per_step: int, items: int, dimensions: int, seed: int) -> list[tuple[int, int]]:
    """(item, dimension) of one step: every question of every item once, in an order drawn anew for each epoch."""
    return [divmod(slot, dimensions) for slot in step_items(step, per_step, items * dimensions, seed)]


class FrozenTeacher:
    """The teacher as a function from rows to log-probs of their tokens. No gradient, no engine."""

    def __init__(self, folder: Path, learner) -> None:
        """Raises JudgeError unless the teacher has the student's tokens: log-probs of other tokens cannot be
        compared."""
        self.learner = learner
        text = JudgeText(folder)
        # forbidden tokens count, too: both normalize over what may be sampled
        same = (text.label_ids, text.vocab_size, text.forbidden_ids, text.tokenizer.get_vocab())
        if same != (
            learner.text.label_ids,
            learner.text.vocab_size,
            learner.text.forbidden_ids,
            learner.text.tokenizer.get_vocab(),
        ):
            raise JudgeError(
                f"on-policy distillation needs a teacher with the student's tokens, {folder} has others; distil it with"
                " jobs/risd.py"
            )
        dtype = torch.float32 if learner.config.dtype == "float32" else torch.bfloat16
        judge, _, self.packer = load_packed_judge(folder, dtype)
        self.judge = judge.requires_grad_(False).eval().to(learner.device)

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """[T_i] float32 nats per completion, row by row: log pi_teacher of the tokens in it."""
        found: list[list[np.ndarray]] = [[] for _ in rows]
        for batch in self.learner.microbatches([[row] for row in rows]):  # fits the memory that training fits
            outputs = self.judge(self.packer.pack([rows[i] for i in batch]).to(self.learner.device))
            values = iter(zip(outputs.logprobs.float().cpu().numpy(), outputs.mask.sum(-1).tolist(), strict=True))
            for i in batch:
                found[i] = [own[:length] for own, length in (next(values) for _ in rows[i].completions)]
        return [values for row in found for values in row]


def rollout_sums(groups: Sequence[Sequence[Judgement]], teacher_logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """Sums over this rank's outputs; `reverse_kl` is that of -A_t over tokens, the student's being the engine's."""
    flat = [j for group in groups for j in group]
    return {
        "tokens": float(sum(len(j.token_ids) for j in flat)),
        "samples": float(len(flat)),
        "malformed": float(sum(j.score_index is None for j in flat)),
        "reverse_kl": float(
            sum((j.logprobs.astype(np.float64) - own).sum() for j, own in zip(flat, teacher_logprobs, strict=True))
        ),
    }


def rollout_means(totals: dict[str, float]) -> dict[str, float]:
    """What a step's outputs show. totals: `rollout_sums` of all ranks."""
    return {
        "opd/reverse_kl": totals["reverse_kl"] / totals["tokens"],  # Eq. 18's mean advantage, negated
        "rollout/malformed_frac": totals["malformed"] / totals["samples"],
        "rollout/tokens_per_sample": totals["tokens"] / totals["samples"],
    }


class OpdObjective:
    """Eq. (19) over all generated tokens of the step, on any micro-batch split and any number of ranks."""

    def __init__(
        self,
        teacher_logprobs: Sequence[np.ndarray],
        judgements: Sequence[Judgement],
        group_size: int,
        totals: dict[str, float],
    ) -> None:
        """teacher_logprobs, judgements: of this rank's units, unit-major, group_size each. totals: `rollout_sums` of
        all ranks."""
        self.teacher_logprobs, self.group_size = teacher_logprobs, group_size
        self.tokens, self.formed = totals["tokens"], max(totals["samples"] - totals["malformed"], 1.0)
        self.student_old = [j.logprobs for j in judgements]
        self.ratio_max_abs_diff = 0.0

    def __call__(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        own = [unit * self.group_size + k for unit in units for k in range(self.group_size)]
        teacher, old = (
            _padded([values[i] for i in own], outputs.logprobs) for values in (self.teacher_logprobs, self.student_old)
        )
        advantages = opd.opd_advantages(teacher, old)
        loss = opd.opd_terms(outputs.logprobs, advantages, outputs.mask).sum() / self.tokens
        with torch.no_grad():
            mismatch = torch.where(outputs.mask, outputs.logprobs - old, torch.zeros_like(old)).exp() - 1
            self.ratio_max_abs_diff = max(self.ratio_max_abs_diff, float(mismatch.abs().max()))
            entropy = scores.score_entropy(scores.score_log_distribution(outputs.score_logprobs))[outputs.valid].sum()
            sums = {"loss/total": float(loss), "score/entropy": float(entropy) / self.formed}
        return loss, sums


def _padded(values: Sequence[np.ndarray], like: Tensor) -> Tensor:
    """[N, T] of arrays [T_i], 0 at padding."""
    padded = torch.zeros_like(like, requires_grad=False)
    for n, own in enumerate(values):
        padded[n, : len(own)] = torch.from_numpy(np.array(own)).to(padded)
    return padded
