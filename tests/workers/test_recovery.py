"""A real engine is killed, or frozen, between a push and its answers: it comes back with the pushed weights and proved,
and the groups are those of an engine that was never lost."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from tests.workers.test_rollout import FakeLearner
from zr_ray.config.weights import SyncTolerance, WeightsSection
from zr_ray.errors import RolloutError, StaleWeightsError, WeightSyncError
from zr_ray.judging.ask import generate, question, require_groups
from zr_ray.loops.push import WeightPush
from zr_ray.models.judge import load_packed_judge
from zr_ray.records import Judgement
from zr_ray.rubric import DIMENSIONS
from zr_ray.workers.recovery import Recovery
from zr_ray.workers.weights import answers_difference


@pytest.fixture(scope="module")
def judge(judge_path):
    """The built-in judge, moved: an engine that only has the folder's weights gives other numbers."""
    module, text, packer = load_packed_judge(judge_path, torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))
    return module, text, packer


@pytest.fixture(scope="module")
def pushed(fleet, rollout_config, judge, judge_path, world_items):
    """(recovery, what it said): version 7 is in the engine and proved."""
    said: list[str] = []
    recovery = Recovery(fleet.workers, rollout_config, said.append)
    push = WeightPush(
        recovery, judge[1], world_items[0], WeightsSection(bucket_mib=1), SyncTolerance("largest", 1e-5), 300
    )
    push(FakeLearner(judge), 7)
    yield recovery, said
    push(FakeLearner(load_packed_judge(judge_path, torch.float32)), 8)  # leave the shared engine as it was


def asked(judge, items):
    return [question(judge[1], item, d, seed=10 * i) for i, item in enumerate(items[:8]) for d in DIMENSIONS]


def hit(worker, number: int, after_s: float = 0.0) -> None:
    """Send a signal to an actor's process: now, or while it works on what is asked next."""
    pid = ray.get(worker.describe.remote(), timeout=120)["pid"]
    if after_s:
        threading.Timer(after_s, os.kill, (pid, number)).start()
    else:
        os.kill(pid, number)


@pytest.mark.parametrize(
    ("number", "deadline_s"), [(signal.SIGKILL, 300), pytest.param(signal.SIGSTOP, 15, marks=pytest.mark.slow)]
)
def test_a_lost_or_frozen_engine_answers_as_if_nothing_had_been(fleet, judge, pushed, world_items, number, deadline_s):
    (recovery, said), requests = pushed, asked(judge, world_items)
    before = generate(fleet.workers, requests, 8, 1.0, 300, "test", recovery)
    said.clear()
    hit(fleet.workers[0], number, 0.1)
    again = generate(fleet.workers, requests, 8, 1.0, deadline_s, "test", recovery)
    assert recovery.take() == 1 and any("is back after" in line for line in said), said
    assert ("hangs" in said[0]) == (number == signal.SIGSTOP), said
    for one, other in zip((j for g in before for j in g), (j for g in again for j in g), strict=True):
        assert np.array_equal(one.token_ids, other.token_ids) and other.policy_version == 7
        assert np.abs(one.logprobs - other.logprobs).max() < 1e-5


def test_an_engine_with_other_weights_refuses(fleet, judge, pushed, world_items):
    requests = asked(judge, world_items)[:1]
    with pytest.raises(StaleWeightsError, match="answers of policy version 6 were asked for, .* holds 7"):
        ray.get(fleet.workers[0].generate.remote(requests, 1, 0.0, 2, 6), timeout=120)


def test_a_replacement_with_wrong_weights_is_not_let_in(fleet, judge, pushed, world_items):
    """What the proof is for: the same version, other numbers."""
    recovery, _ = pushed
    handles, recovery._handles = recovery._handles, recovery._handles[:1]
    hit(fleet.workers[0], signal.SIGKILL)
    try:
        with pytest.raises(WeightSyncError, match="after the push of version 7"):
            generate(fleet.workers, asked(judge, world_items), 4, 1.0, 300, "test", recovery)
    finally:
        recovery._handles = handles
        ray.get(fleet.workers[0].update_weights.remote(7, handles), timeout=120)


def judgement(tokens, logprobs, scores=None):
    scores = None if scores is None else np.asarray(scores, np.float32)
    index = None if scores is None else len(tokens) - 1
    return Judgement("k", 0, np.asarray(tokens, np.int32), np.asarray(logprobs, np.float32), index, scores, 1)


def test_answers_are_compared_up_to_where_they_part():
    one = judgement([3, 4, 5], [-0.1, -0.7, -0.2], [-1.0, -2.0])
    assert answers_difference([one], [one]).largest == 0
    parted = judgement([3, 9, 8], [-0.1, -0.700001, -5.0], [-9.0, -9.0])
    assert 0 < answers_difference([one], [parted]).largest < 1e-5, "rounding decided; the rest is not compared"
    assert answers_difference([one], [judgement([3, 9, 8], [-0.1, -0.9, -5.0])]).largest == pytest.approx(0.2)
    assert answers_difference([one], [judgement([3, 4, 5], [-0.1, -0.7, -0.2], [-1.0, -2.5])]).largest == pytest.approx(
        0.5
    )
    assert answers_difference([one], [judgement([3, 4, 5], [-0.1, float("nan"), -0.2])]).largest == float("inf")


def test_no_group_is_lost_and_none_comes_twice(judge, world_items):
    requests = asked(judge, world_items)[:2]
    groups = [[replace(judgement([1], [0.0]), key=r.key, sample=s) for s in range(2)] for r in requests]
    require_groups(requests, groups, 2)
    for wrong in (groups[:1], [*groups, groups[0]]):
        with pytest.raises(RolloutError, match="2 groups were asked for"):
            require_groups(requests, wrong, 2)
    for wrong in ([groups[1], groups[0]], [groups[0][:1], groups[1]], [groups[0][::-1], groups[1]]):
        with pytest.raises(RolloutError, match="samples 0 to 1 of"):
            require_groups(requests, wrong, 2)
