"""Supervised baselines on every learner rank: SFT (one score token) and RewardDance (post-hoc reasoning chain, then the
score).

The data order is GDSO's: the same pairs at the same steps, both sides of each; the rollout actors only judge the
held-out set. RewardDance (arXiv 2509.08826): generated-token probability under chains written by a stronger annotator.
In the built-in world that annotator is the oracle that knows the scene.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zr_ray.config.sft import SftConfig, SftSection
from zr_ray.data.images import load_image
from zr_ray.errors import DataError
from zr_ray.functional import scores
from zr_ray.loops.held_out import HeldOut, by_engines
from zr_ray.loops.journal import Journal, phase_deadlines
from zr_ray.loops.push import WeightPush
from zr_ray.loops.sums import reduced
from zr_ray.models.judge import JudgeOutputs
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.workers.recovery import Recovery

if TYPE_CHECKING:
    from zr_ray.loops.training import TrainingTask


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.data.pairs import PairSchedule
    from zr_ray.workers.learner import Learner

    task: TrainingTask = loop_config["task"]
    config: SftConfig = task.config
    c = config.sft
    learner = Learner(task.judge, config.learner)
    hung_s = phase_deadlines(config)
    journal = Journal(task.run_path, learner, config.checkpoint, c.steps, task.started_at, config.run, hung_s)
    method = "rewarddance" if c.reasoning else "sft"
    recovery = Recovery(task.workers, config.rollout, journal.tell)
    held_out = HeldOut(journal, learner, task, method, c.reasoning, by_engines(learner, task, recovery))
    push = WeightPush.of_run(task, recovery, learner.text, task.pairs[0].winner)
    schedule = PairSchedule(list(task.pairs), c.pairs_per_step, config.run.seed)
    bins = torch.tensor(learner.text.rubric.bins)

    start = journal.restore()
    journal.note(push(learner, start))
    if start == 0:
        held_out.before()

    for step in journal.steps(start):
        batch = schedule.batch(step)
        pairs = [batch[i] for i in range(learner.rank, c.pairs_per_step, learner.world)]
        sides = [
            (side, pair.dimension, score)
            for pair in pairs
            for side, score in ((pair.winner, pair.winner_score), (pair.loser, pair.loser_score))
        ]
        with journal.timer("train"):
            push.rest(learner)
            units = [
                [answer_row(learner.text, item, dimension, score, c.reasoning)] for item, dimension, score in sides
            ]
            targets = score_targets(torch.tensor([score for _, _, score in sides]), c, bins)
            # every side counts, on every rank: the denominator needs no reduction
            stats = learner.accumulate(units, SftObjective(targets, 2 * c.pairs_per_step, c.chain_weight))
            metrics = reduced(stats.sums, learner.reduce_sum) | learner.apply(config.learner.rate(step, c.steps))
        # the engines only judge the held-out set, so they get weights only when it is judged
        if held_out.is_due(step + 1) or step + 1 == c.steps:
            with journal.timer("push"):
                metrics |= push(learner, step + 1)
        metrics |= held_out.during(step + 1)
        journal.step(step + 1, metrics, tokens=0.0)
        journal.checkpoint(step + 1)
    journal.finish(method, held_out.finish())


def answer_row(text: JudgeText, item, dimension: str, score: float, reasoning: bool) -> Row:
    """The annotated answer as a row to learn. Raises DataError if a chain is wanted and the item has none."""
    chain = None
    if reasoning:
        chain = item.reasoning.get(dimension)
        if not chain:
            raise DataError(
                f"item {item.id} must carry a reasoning text for {dimension} to train with sft.reasoning, it has none;"
                " add `reasoning` to its record, or set sft.reasoning=false"
            )
    tokens, index = text.answer(text.rubric.nearest_bin(score), chain)
    return Row(text.question(item.prompt, dimension, direct=not reasoning), load_image(item.image), (tokens,), (index,))


def score_targets(human: Tensor, c: SftSection, bins: Tensor) -> Tensor:
    """[N, K] target distribution of each score. bins: [K] rubric points."""
    return scores.label_targets(human.float(), c.target, c.gaussian_std, bins)


class SftObjective:
    """Cross-entropy of the score token over the whole vocabulary, plus chain_weight times the mean log-loss of the
    other tokens."""

    def __init__(self, targets: Tensor, total: int, chain_weight: float) -> None:
        """targets: [N, K] of this rank's units. total: sequences of all ranks, the denominator."""
        self.targets, self.total, self.chain_weight = targets, total, chain_weight

    def __call__(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        targets = self.targets[units].to(outputs.score_logprobs)
        score = -(targets * outputs.score_logprobs).sum() / self.total
        at_score = torch.arange(outputs.mask.shape[1], device=outputs.mask.device) == outputs.score_index[:, None]
        others = outputs.mask & ~at_score
        # 0 for a direct answer, which has no other tokens
        chain = -(outputs.logprobs * others).sum(-1) / others.sum(-1).clamp_min(1)
        chain = chain.sum() / self.total
        loss = score + self.chain_weight * chain
        log_q = scores.score_log_distribution(outputs.score_logprobs.detach())
        metrics = {
            "loss/score": score,
            "loss/chain": chain,
            "loss/total": loss,
            "score/entropy": scores.score_entropy(log_q).sum() / self.total,
        }
        return loss, {name: float(value.detach()) for name, value in metrics.items()}
