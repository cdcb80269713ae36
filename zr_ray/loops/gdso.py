"""GDSO, Algorithm 1, on every learner rank: roll out pairs, reward, update, push, judge the held-out set, save.

Runs inside Ray Train. Each rank asks its own share of rollout actors for its own share of pairs; nothing passes through
the driver. Every random choice is a function of (run seed, step, index), so a resumed run repeats what the killed one
would have done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zr_ray.config.sections import GdsoConfig
from zr_ray.functional.schedule import learning_rate
from zr_ray.judging.ask import generate, pair_requests, workers_of_rank
from zr_ray.loops.journal import Journal
from zr_ray.loops.objective import GdsoObjective, collect, mean_metrics, reduced, rollout_metrics
from zr_ray.loops.push import WeightPush

if TYPE_CHECKING:
    from zr_ray.loops.launch import TrainingTask


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.data.pairs import PairSchedule
    from zr_ray.workers.learner import Learner

    task: TrainingTask = loop_config["task"]
    config: GdsoConfig = task.config
    c = config.gdso
    learner = Learner(task.judge, config.learner, keep_reference=c.beta_kl > 0)
    journal = Journal(task, learner, method="gdso", total_steps=c.steps, reasoning=True)
    push = WeightPush(
        task.workers,
        learner.text,
        task.pairs[0].winner,
        config.weights,
        config.sync_tolerance,
        config.rollout.deadline_s,
    )
    schedule = PairSchedule(list(task.pairs), c.pairs_per_step, config.run.seed)
    workers = workers_of_rank(task.workers, learner.rank, learner.world)

    start = journal.restore()  # also opens metrics, and drops what a killed run wrote after its checkpoint
    version = start
    journal.note(push(learner, version))
    if start == 0:
        journal.evaluate_base()

    for step in range(start, c.steps):
        if step % c.reference_refresh_steps == 0:
            learner.refresh_reference()
        with journal.timer("rollout"):
            indices = range(learner.rank, c.pairs_per_step, learner.world)
            batch = schedule.batch(step)
            pairs = [batch[i] for i in indices]
            requests = pair_requests(learner.text, pairs, step, config.run.seed, indices)
            groups = generate(
                workers,
                requests,
                c.group_size,
                config.rollout.temperature,
                config.rollout.deadline_s,
                f"rollouts of step {step + 1}",
            )
            rollouts = collect(pairs, requests, groups, c, learner.text.label_ids)
            totals = reduced(rollout_metrics(rollouts, step), learner.reduce_sum)
        objective = GdsoObjective(rollouts, c, totals, config.rollout.max_new_tokens)
        with journal.timer("train"):
            for k in range(c.updates_per_rollout):
                stats = learner.accumulate(rollouts.units, objective)
                rate = learning_rate(step * c.updates_per_rollout + k, c.steps * c.updates_per_rollout, config.learner)
                applied = learner.apply(rate)
                if k == 0:
                    on_policy = learner.reduce_max(objective.ratio_max_abs_diff)
        metrics = mean_metrics(totals | reduced(stats.sums, learner.reduce_sum)) | applied
        metrics |= {"policy/ratio_max_abs_diff": on_policy, "learner/microbatches": float(stats.microbatches)}
        if (step + 1) % config.weights.push_every_steps == 0 or step + 1 == c.steps:
            version = step + 1
            with journal.timer("push"):
                metrics |= push(learner, version)
        if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0 and step + 1 < c.steps:
            metrics |= journal.evaluate_during(workers)
        journal.step(step + 1, metrics, totals["tokens"])
        if (step + 1) % config.checkpoint.every_steps == 0 or step + 1 == c.steps:
            journal.save(step + 1)
    journal.finish()
