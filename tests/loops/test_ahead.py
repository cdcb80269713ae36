"""Rollouts that are asked for before their step, on a real engine: how old they may be, that no pair is lost or comes
twice, that what is left is taken next, and what happens when an engine is lost under them."""

import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import ray
import torch

from tests.workers.test_rollout import FakeLearner
from zr_ray.config.gdso import GdsoConfig, GdsoSection
from zr_ray.config.sections import TrackedRunSection
from zr_ray.config.weights import SyncTolerance, WeightsSection
from zr_ray.config.workers import LearnerSection
from zr_ray.data.pairs import PairSchedule, preference_pairs
from zr_ray.errors import RolloutError
from zr_ray.judging.ask import generate, pair_requests
from zr_ray.loops.ahead import IN_FLIGHT, RolloutsAhead
from zr_ray.loops.push import WeightPush
from zr_ray.models.judge import load_packed_judge
from zr_ray.workers.recovery import Recovery

PAIRS = 8
SEED = 3


@pytest.fixture(scope="module")
def judge(judge_path):
    return load_packed_judge(judge_path, torch.float32)


@dataclass
class Run:
    """What a learner rank has around its rollouts. Weights never change; their version does."""

    fleet: object
    config: GdsoConfig
    recovery: Recovery
    push: WeightPush
    learner: FakeLearner
    schedule: PairSchedule

    def ahead(self, start=0, left=(), mine=range(PAIRS)) -> RolloutsAhead:
        text = self.learner.judge[1]
        return RolloutsAhead(self.fleet.workers, self.recovery, text, self.schedule, self.config, mine, start, left)

    def asked(self, step, indices=range(PAIRS)):
        """What a step that is not sampled ahead would ask."""
        pairs = self.schedule.batch(step)
        return pair_requests(self.learner.judge[1], [pairs[i] for i in indices], step, SEED, indices)


@pytest.fixture()
def make_run(fleet, rollout_config, judge, world_items):
    """A run under these settings of `gdso`, version 0 pushed."""

    def made(**settings) -> Run:
        section = GdsoSection(pairs_per_step=PAIRS, group_size=2, **({"steps": 4} | settings))
        run = TrackedRunSection(seed=SEED)
        config = GdsoConfig(gdso=section, run=run, rollout=rollout_config, learner=LearnerSection(warmup_steps=0))
        recovery, learner = Recovery(fleet.workers, rollout_config, [].append), FakeLearner(judge)
        exact, weights = SyncTolerance("largest", 1e-5), WeightsSection(bucket_mib=1)
        push = WeightPush(recovery, judge[1], world_items[0], weights, exact, 300)
        push(learner, 0)
        schedule = PairSchedule(preference_pairs(world_items), PAIRS, SEED)
        return Run(fleet, config, recovery, push, learner, schedule)

    return made


def versions(taken) -> set[int]:
    return {judgement.policy_version for group in taken.groups for judgement in group}


def keys(requests) -> list[tuple[str, int]]:
    """Questions with their seeds: no two of a run are equal."""
    return [(request.key, request.seed) for request in requests]


def test_engines_sample_one_step_ahead_and_never_more(make_run):
    run = make_run(max_staleness=1)
    ahead = run.ahead()
    ahead.allow(0)
    seen = {}
    for step in range(4):
        with pytest.raises(RolloutError, match="was not asked for"):
            run.ahead(step).take(step)
        taken = ahead.take(step)
        assert keys(taken.requests) == keys(run.asked(step)) and (taken.left, taken.due) == (0, PAIRS)
        seen[step] = versions(taken)
        run.push.begin(run.learner, step + 1)
        assert run.push.finish(run.learner)["sync/max_abs_diff"] < 1e-5
        ahead.allow(step + 1)
    assert seen == {0: {0}, 1: {0}, 2: {1}, 3: {2}}
    assert ahead.left(3) == [] and not any(part.in_flight for part in ahead._parts)


def test_what_is_sampled_ahead_is_what_would_be_sampled_at_its_step(make_run):
    """Same questions, same seeds: in parts and out of turn an engine writes what it writes for a whole step."""
    run = make_run(max_staleness=1, collect_parts=3)
    ahead = run.ahead()
    ahead.allow(0)
    ahead.take(0)
    taken = ahead.take(1)
    whole = generate(run.fleet.workers, run.asked(1), 2, 1.0, 300, "test", run.recovery)
    for one, other in zip((j for g in taken.groups for j in g), (j for g in whole for j in g), strict=True):
        assert np.array_equal(one.token_ids, other.token_ids) and np.abs(one.logprobs - other.logprobs).max() < 1e-5


def test_a_step_leaves_what_is_not_back_to_the_next_one(make_run):
    """One engine, eight calls a step, a quarter of them waited for. Every pair comes once, at its step or the next."""
    steps = 5
    run = make_run(max_staleness=2, collect_frac=0.25, collect_parts=PAIRS, steps=steps)
    ahead = run.ahead()
    ahead.allow(0)
    came, lefts, before = [], [], 0
    for step in range(steps):
        assert sum(part.in_flight for part in ahead._parts) <= IN_FLIGHT * len(run.fleet.workers)
        taken = ahead.take(step)
        came += keys(taken.requests)
        own = keys(run.asked(step))
        if step:
            own += keys(run.asked(step - 1))
        assert set(keys(taken.requests)) <= set(own)
        assert len(taken.pairs) == before + PAIRS - taken.left >= before + PAIRS // 4
        assert all(0 <= step - version <= 2 for version in versions(taken))
        assert len(ahead.left(step)) == taken.left
        lefts.append(taken.left)
        before = taken.left
        run.push(run.learner, step + 1)
        ahead.allow(step + 1)
    wanted = [key for step in range(steps) for key in keys(run.asked(step))]
    assert len(came) == len(set(came)) and sorted(came) == sorted(wanted), "lost or doubled"
    assert any(lefts[:-1]) and lefts[-1] == 0


def test_a_resumed_run_begins_with_what_the_checkpoint_left(make_run):
    """Two ranks: each takes its own positions of what all ranks left."""
    run = make_run(max_staleness=1, collect_frac=0.5, collect_parts=2)
    run.push(run.learner, 2)
    for rank in range(2):
        mine = range(rank, PAIRS, 2)
        ahead = run.ahead(start=2, left=[1, 4, 7], mine=mine)
        ahead.allow(2)
        taken = ahead.take(2)
        first = [i for i in (1, 4, 7) if i in mine]
        expected = keys(run.asked(1, first)) + keys(run.asked(2, mine))
        assert keys(taken.requests) == expected[: len(taken.requests)]
        assert len(taken.pairs) >= len(first) + 2 and versions(taken) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_engine_is_asked_again(make_run, number):
    run = make_run(max_staleness=1)
    if number == signal.SIGSTOP:
        rollout = run.config.rollout.model_copy(update={"deadline_s": 15.0})
        run.config = run.config.model_copy(update={"rollout": rollout})
    pid = ray.get(run.fleet.workers[0].describe.remote(), timeout=120)["pid"]
    ahead = run.ahead()
    ahead.allow(0)
    os.kill(pid, number)
    taken = [ahead.take(step) for step in (0, 1)]
    assert run.recovery.take() == 1
    assert [keys(one.requests) for one in taken] == [keys(run.asked(step)) for step in (0, 1)]
    assert versions(taken[0]) == versions(taken[1]) == {0}
    whole = generate(run.fleet.workers, run.asked(1), 2, 1.0, 300, "test", run.recovery)
    for one, other in zip((j for g in taken[1].groups for j in g), (j for g in whole for j in g), strict=True):
        assert np.array_equal(one.token_ids, other.token_ids)
