"""GDSO, Algorithm 1, on every learner rank: roll out pairs, reward, update, push, judge the held-out set, save.

Runs inside Ray Train. Each rank asks its own share of rollout actors for its own share of pairs; nothing passes through
the driver. Every random choice is a function of (run seed, step, index), so a resumed run repeats what the killed one
would have done. The proof of a push goes along with the rollouts of the next step, and is looked at before they are
trained on: `sync/*` of a step are those of the weights that sampled it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zr_ray.config.gdso import GdsoConfig
from zr_ray.judging.ask import pair_requests, workers_of_rank
from zr_ray.loops.gdso_ahead import train_ahead
from zr_ray.loops.held_out import HeldOut, by_engines
from zr_ray.loops.journal import Journal, phase_deadlines
from zr_ray.loops.objective import GdsoObjective, collect, mean_metrics, rollout_metrics
from zr_ray.loops.push import WeightPush
from zr_ray.loops.sums import reduced
from zr_ray.loops.unscored import UnscoredSteps
from zr_ray.workers.recovery import Recovery

if TYPE_CHECKING:
    from zr_ray.loops.training import TrainingTask


def train(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step; every step is sampled by its own
    weights, unless gdso.max_staleness lets engines sample ahead (`gdso_ahead.py`)."""
    from zr_ray.data.pairs import PairSchedule
    from zr_ray.workers.learner import Learner

    task: TrainingTask = loop_config["task"]
    config: GdsoConfig = task.config
    c = config.gdso
    if c.max_staleness:
        return train_ahead(loop_config)
    # without a KL term nothing reads pi_ref, and a copy of the model is saved
    learner = Learner(task.judge, config.learner, keep_reference=c.beta_kl > 0)
    hung_s = phase_deadlines(config)
    journal = Journal(task.run_path, learner, config.checkpoint, c.steps, task.started_at, config.run, hung_s)
    recovery = Recovery(task.workers, config.rollout, journal.tell)
    ask = by_engines(learner, task, recovery)
    held_out = HeldOut(journal, learner, task, method="gdso", reasoning=True, ask=ask)
    push = WeightPush.of_run(task, recovery, learner.text, task.pairs[0].winner)
    schedule = PairSchedule(list(task.pairs), c.pairs_per_step, config.run.seed)
    workers = workers_of_rank(task.workers, learner.rank, learner.world)
    unscored = UnscoredSteps(journal, learner.text, config.rollout.max_new_tokens, c.unscored_steps)

    start = journal.restore()  # also drops what a killed run wrote after its checkpoint
    push.begin(learner, start)
    # of weights whose answers are wanted at once; else the proof goes along with the rollouts that they sample
    proof = push.finish(learner) if start in (0, c.steps) or held_out.is_due(start) else {}
    if start == 0:  # a resumed run has these rows in its folder
        held_out.before()

    for step in journal.steps(start):
        if step % c.reference_refresh_steps == 0:
            learner.refresh_reference()
        with journal.timer("rollout"):
            # positions in the step's global batch also seed the requests: any number of ranks samples the same traces
            indices = range(learner.rank, c.pairs_per_step, learner.world)
            batch = schedule.batch(step)
            pairs = [batch[i] for i in indices]
            requests = pair_requests(learner.text, pairs, step, config.run.seed, indices)
            what = f"rollouts of step {step + 1}"
            groups = push.sample(workers, requests, c.group_size, what)
        with journal.timer("push"):
            proof |= push.finish(learner)  # nothing is trained on before the weights that sampled it are proved
        with journal.timer("rollout"):
            text = learner.text
            rollouts = collect(pairs, requests, groups, c, text.rubric, text.label_ids, len(text.marker_ids))
            # denominators of the whole step, known before its first loss
            counts = {"rollout/groups": float(len(groups)), "rollout/recovered": float(recovery.take())}
            totals = reduced(rollout_metrics(rollouts, step) | counts, learner.reduce_sum)
        metrics = mean_metrics(totals)
        if unscored.check(step + 1, totals["valid"], totals["samples"], groups):
            stale = config.weights.push_every_steps > 1
            objective = GdsoObjective(rollouts, c, totals, config.rollout.max_new_tokens, stale)
            with journal.timer("train"):
                push.rest(learner)
                for k in range(c.updates_per_rollout):
                    stats = learner.accumulate(rollouts.units, objective)
                    rate = config.learner.rate(step * c.updates_per_rollout + k, c.steps * c.updates_per_rollout)
                    applied = learner.apply(rate)
                    if k == 0:  # later updates are off-policy by design; the first must show a ratio of 1
                        on_policy = learner.reduce_max(objective.ratio_max_abs_diff)
            metrics = mean_metrics(totals | reduced(stats.sums, learner.reduce_sum)) | applied
            metrics |= {"policy/ratio_max_abs_diff": on_policy, "learner/microbatches": float(stats.microbatches)}
        metrics |= {name: totals[name] for name in counts} | proof
        with journal.timer("push"):
            if (step + 1) % config.weights.push_every_steps == 0 or step + 1 == c.steps:
                push.begin(learner, step + 1)
            # the held-out set is judged through the engines, after the last step too
            proof = push.finish(learner) if step + 1 == c.steps or held_out.is_due(step + 1) else {}
        if step + 1 == c.steps:
            metrics |= proof
        metrics |= held_out.during(step + 1)
        journal.step(step + 1, metrics, totals["tokens"])
        journal.checkpoint(step + 1)
    journal.finish("gdso", held_out.finish())
