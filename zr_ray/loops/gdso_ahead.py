"""GDSO, Algorithm 1, with engines that sample the next steps while the learner trains (`gdso.max_staleness` above 0).

    take the step's rollouts -> reward -> forward and backward, engines at work -> proof of the last push -> update
    -> push behind what engines are at -> evaluate, save -> engines may go on

Departs from the paper: an output is trained on by weights up to `max_staleness` versions newer than those that sampled
it. So the importance ratio is learner / rollout, and its clip acts; rewards and advantages are those of the weights
that sampled (`objective.py`). The proof of a push is waited for at the end of the next step's backward pass: nothing is
trained on that came from unproved weights, and engines answer it while the learner works.
What is repeated after a kill: the same pairs in the same order with the same seeds, none lost and none twice. What is
not: the version that samples a pair, so the numbers differ from those of a run that was not killed. Outputs that were
in flight at a checkpoint are sampled again by its weights.
Left out on purpose: `weights.push_every_steps`; every step has a version, which the bound counts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zr_ray.config.gdso import GdsoConfig
from zr_ray.data.pairs import PairSchedule
from zr_ray.errors import RolloutError
from zr_ray.judging.ask import workers_of_rank
from zr_ray.loops.ahead import RolloutsAhead
from zr_ray.loops.held_out import HeldOut, by_engines
from zr_ray.loops.journal import Journal, phase_deadlines
from zr_ray.loops.objective import GdsoObjective, PairRollouts, collect, mean_metrics, rollout_metrics
from zr_ray.loops.push import WeightPush
from zr_ray.loops.sums import reduced
from zr_ray.loops.unscored import UnscoredSteps
from zr_ray.workers.recovery import Recovery

if TYPE_CHECKING:
    from zr_ray.loops.training import TrainingTask
    from zr_ray.workers.learner import Learner


def train_ahead(loop_config: dict) -> None:
    """One learner rank from start, or from the newest checkpoint, to the last step."""
    from zr_ray.workers.learner import Learner

    task: TrainingTask = loop_config["task"]
    config: GdsoConfig = task.config
    c = config.gdso
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

    start = journal.restore()
    mine, left = range(learner.rank, c.pairs_per_step, learner.world), journal.restored.get("left", [])
    ahead = RolloutsAhead(workers, recovery, learner.text, schedule, config, mine, start, left)
    journal.note(push(learner, start))
    if start == 0:
        held_out.before()
    ahead.allow(start)

    for step in journal.steps(start):
        if step % c.reference_refresh_steps == 0:
            learner.refresh_reference()
        with journal.timer("rollout"):
            taken, text = ahead.take(step), learner.text
            rollouts = collect(
                taken.pairs, taken.requests, taken.groups, c, text.rubric, text.label_ids, len(text.marker_ids)
            )
            stalest = require_fresh(rollouts, step, c.max_staleness, learner)
            counts = {"rollout/groups": len(taken.groups), "rollout/recovered": recovery.take()}
            counts |= {"rollout/due_pairs": taken.due, "rollout/back_pairs": taken.back}
            counts |= {"rollout/left_pairs": taken.left}
            totals = reduced(rollout_metrics(rollouts, step) | counts, learner.reduce_sum)
        metrics = mean_metrics(totals)
        if unscored.check(step + 1, totals["valid"], totals["samples"], taken.groups):
            metrics |= update(learner, journal, push, ahead, rollouts, totals, config, step)
        metrics |= {name: totals[name] for name in counts} | {"rollout/staleness_max": stalest}
        with journal.timer("push"):
            metrics |= push.finish(learner)  # of a step without an update
            push.begin(learner, step + 1)
            push.ask()
            if held_out.is_due(step + 1) or step + 1 == c.steps:
                metrics |= push.finish(learner)
        # engines have answered all they were asked when a push is finished, and get nothing new before `allow`
        metrics |= held_out.during(step + 1)
        journal.step(step + 1, metrics)  # tokens of a step say nothing beside the seconds that the learner waited
        journal.checkpoint(step + 1, before=partial(settle, learner, journal, push, ahead, c.pairs_per_step, step))
        ahead.allow(step + 1)
    journal.finish("gdso", held_out.finish())


def update(
    learner: Learner,
    journal: Journal,
    push: WeightPush,
    ahead: RolloutsAhead,
    rollouts: PairRollouts,
    totals: dict[str, float],
    config: GdsoConfig,
    step: int,
) -> dict[str, float]:
    """All updates of step `step` (0-based) on its rollouts, and the proof of the push that is under way.

    Args: totals: `rollout_metrics` summed over ranks.   Returns: metrics of rollouts, updates and proof."""
    c, proof = config.gdso, dict[str, float]()
    objective = GdsoObjective(rollouts, c, totals, config.rollout.max_new_tokens, stale=True)
    for k in range(c.updates_per_rollout):
        with journal.timer("train"):
            stats = learner.accumulate(rollouts.units, ahead.fed(objective))
            if k == 0:
                furthest = learner.reduce_max(objective.ratio_max_abs_diff)
        with journal.timer("push"):
            proof |= push.finish(learner)  # before the weights that it is about change
        with journal.timer("train"):
            rate = config.learner.rate(step * c.updates_per_rollout + k, c.steps * c.updates_per_rollout)
            applied = learner.apply(rate)
    known = totals | reduced(stats.sums, learner.reduce_sum)
    found = {"policy/ratio_max_abs_diff": furthest, "learner/microbatches": float(stats.microbatches)}
    return mean_metrics(known) | applied | found | proof


def settle(learner: Learner, journal: Journal, push: WeightPush, ahead: RolloutsAhead, pairs: int, step: int) -> dict:
    """Before a checkpoint after step `step` (0-based): engines idle, their weights proved. Returns: positions of the
    step's pairs that are still to be trained on, for `journal.restored`."""
    with journal.timer("push"):
        journal.note(push.finish(learner))
    waiting = set(ahead.left(step))
    flags = learner.reduce_sum([float(i in waiting) for i in range(pairs)])
    return {"left": [i for i, flag in enumerate(flags) if flag]}


def require_fresh(rollouts: PairRollouts, step: int, max_staleness: int, learner: Learner) -> float:
    """Versions by which the weights of step `step` (0-based) are newer than the oldest that sampled for it, over all
    ranks.

    Raises: RolloutError on all ranks if that is more than allowed: then this program is wrong, not a setting."""
    stalest = learner.reduce_max(float((step - rollouts.policy_versions).max()))
    if stalest > max_staleness:
        raise RolloutError(
            f"step {step + 1} must be sampled by weights {step - max_staleness} or newer (gdso.max_staleness ="
            f" {max_staleness}), got {step - stalest:.0f}; continue with --resume and report this"
        )
    return stalest
