"""Weights by broadcast through vLLM's weight-transfer API: the code that runs over NCCL on GPUs, here over gloo,
between a learner and real engines. What arrives is proved, what does not is noticed, what is lost comes back."""

import os
import signal
import time

import pytest
import ray
import torch
from real_judges import real_judge

from tests.workers.test_rollout import FakeLearner
from zr_ray.config.weights import SyncTolerance, WeightsSection
from zr_ray.config.workers import RolloutSection
from zr_ray.errors import WeightSyncError
from zr_ray.judging.ask import generate, question
from zr_ray.loops.push import WeightPush
from zr_ray.models.judge import load_packed_judge
from zr_ray.rubric import DIMENSIONS
from zr_ray.workers.recovery import Recovery
from zr_ray.workers.rollout import rollout_fleet
from zr_ray.workers.transports import BroadcastTransport
from zr_ray.workers.weights import Checksum, probe_difference

EXACT = SyncTolerance("largest", 1e-5)
SECTION = RolloutSection(
    workers=2, cpus=0.5, threads=1, max_model_len=160, max_num_seqs=64, restarts=9, deadline_s=120, kv_cache_gib=0.1
)


@pytest.fixture(scope="module")
def fleet(ray_cluster, judge_path):
    """Two engines that can be broadcast to."""
    with rollout_fleet("broadcast", judge_path, SECTION, transport="broadcast") as started:
        yield started


@pytest.fixture(scope="module")
def judge(judge_path):
    return load_packed_judge(judge_path, torch.float32)


@pytest.fixture()
def made(judge, world_items):
    """A push to some engines; what it said."""

    def push_to(workers, **settings) -> tuple[WeightPush, list[str]]:
        said: list[str] = []
        weights = WeightsSection(bucket_mib=1, transport="broadcast", **settings)
        recovery = Recovery(workers, SECTION, said.append)
        transport = BroadcastTransport(workers, weights, SECTION)
        return WeightPush(recovery, judge[1], world_items[0], weights, EXACT, 120, transport), said

    return push_to


def move(judge, seed: int) -> None:
    """Change all weights, so that a push that did not arrive shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in judge[0].model.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))


def checksums(workers) -> set[str]:
    return set(ray.get([w.weights_checksum.remote() for w in workers], timeout=120))


def groups_of(workers) -> list[str]:
    return ray.get([w.transfer_group.remote() for w in workers], timeout=120)


def kill(worker) -> None:
    os.kill(ray.get(worker.describe.remote(), timeout=120)["pid"], signal.SIGKILL)


@pytest.mark.parametrize("engines", [1, 2])
def test_changed_weights_arrive_in_every_engine_and_are_proved(fleet, judge, made, world_items, engines):
    workers, learner = fleet.workers[:engines], FakeLearner(judge)
    push, said = made(workers)
    for version in (10 * engines, 10 * engines + 1):
        move(judge, version)
        proof = push(learner, version)
        assert proof["sync/max_abs_diff"] < 1e-5 and proof["sync/version"] == version
        sent = Checksum()
        assert len(list(sent.over(learner.named_weights()))) > 10
        assert checksums(workers) == {sent.digest}, "all tensors, and none of them was read twice"
        if version % 10 == 0:
            group = groups_of(workers)
    assert groups_of(workers) == group and len(set(group)) == 1 and group[0], "one group, made once"
    assert not said, "nothing was mended on the way"
    requests = [question(judge[1], item, d, 0) for item in world_items[:2] for d in DIMENSIONS]
    groups = generate(workers, requests, 2, 1.0, 120, "test")
    assert {j.policy_version for g in groups for j in g} == {10 * engines + 1}


def test_what_did_not_arrive_is_noticed(fleet, judge, made):
    push, _ = made(fleet.workers)

    class Partial(FakeLearner):
        def named_weights(self):
            for name, value in super().named_weights():
                yield name, (torch.zeros_like(value) if "layers.0.mlp" in name else value)

    with pytest.raises(WeightSyncError, match="stale or wrongly mapped weights"):
        push(Partial(judge), 30)
    push.begin(FakeLearner(judge), 31)
    push._under_way.sent._running ^= 1  # what was sent is another thing than what was read
    with pytest.raises(WeightSyncError, match="must have read the weights of version 31 as they were sent"):
        push.finish(FakeLearner(judge))


@pytest.mark.slow
def test_an_engine_that_was_lost_between_two_pushes_gets_the_next(fleet, judge, made, world_items):
    push, said = made(fleet.workers)
    learner = FakeLearner(judge)
    push(learner, 40)
    group = groups_of(fleet.workers)[0]
    kill(fleet.workers[1])
    move(judge, 41)
    assert push(learner, 41)["sync/max_abs_diff"] < 1e-5
    assert group not in groups_of(fleet.workers) and len(set(groups_of(fleet.workers))) == 1, "a new group"
    # and one that is lost before its answers comes back through the copy, proved
    kill(fleet.workers[0])
    requests = [question(judge[1], item, d, 0) for item in world_items[:2] for d in DIMENSIONS]
    answers = generate(fleet.workers, requests, 1, 0.0, 120, "test", push.recovery)
    assert push.recovery.take() == 1 and any("is back after" in line for line in said), said
    assert {j.policy_version for g in answers for j in g} == {41}


@pytest.mark.slow
def test_a_broadcast_that_breaks_off_ends_in_the_object_store(fleet, judge, made):
    """An engine dies while the buckets go round: nobody hangs, and all engines are whole afterwards."""
    push, said = made(fleet.workers)
    push(FakeLearner(judge), 50)
    move(judge, 51)

    class Deadly(FakeLearner):
        armed = False

        def described_weights(self):
            told = super().described_weights()
            self.armed = True  # what comes next is sent
            return told

        def named_weights(self):
            for n, named in enumerate(super().named_weights()):
                if n == 12 and self.armed:
                    self.armed = False
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(1)
                yield named

    pid = ray.get(fleet.workers[1].describe.remote(), timeout=120)["pid"]
    start = time.monotonic()
    assert push(Deadly(judge), 51)["sync/max_abs_diff"] < 1e-5
    assert time.monotonic() - start < 100
    assert any("broke off" in line and "engines read the copy" in line for line in said), said
    held = ray.get([w.held_weights.remote() for w in fleet.workers], timeout=120)
    assert [version for version, _ in held] == [51, 51]
    assert push(FakeLearner(judge), 52)["sync/max_abs_diff"] < 1e-5 and len(set(groups_of(fleet.workers))) == 1


def test_without_a_copy_a_lost_engine_ends_the_run_at_once(fleet, judge, made, world_items):
    push, _ = made(fleet.workers, keep_copy=False)
    assert push(FakeLearner(judge), 60)["sync/max_abs_diff"] < 1e-5
    assert ray.get(fleet.workers[0].held_weights.remote(), timeout=60) == (60, []), "nothing is in the object store"
    kill(fleet.workers[1])
    requests = [question(judge[1], item, d, 0) for item in world_items[:2] for d in DIMENSIONS]
    with pytest.raises(WeightSyncError, match="there is no copy of weights 60"):
        generate(fleet.workers, requests, 1, 0.0, 120, "test", push.recovery)


@pytest.mark.slow
def test_a_split_engine_takes_a_broadcast(ray_cluster, tmp_path, world_items):
    """Both processes of an engine are in the group and read everything; no file is between. The built-in judge's three
    vision heads cannot be split."""
    changes = {"workers": 1, "tensor_parallel": 2, "cpus": 1.0, "max_model_len": 512}
    section, folder = SECTION.model_copy(update=changes), real_judge(tmp_path / "judge", "qwen3_vl")
    judge = load_packed_judge(folder, torch.float32)
    learner = FakeLearner(judge)
    with rollout_fleet("split", folder, section, transport="broadcast") as split:
        recovery, weights = Recovery(split.workers, section), WeightsSection(bucket_mib=1, transport="broadcast")
        transport = BroadcastTransport(split.workers, weights, section)
        push = WeightPush(recovery, judge[1], world_items[0], weights, EXACT, 300, transport)
        for version in (1, 2):
            move(judge, version)
            assert push(learner, version)["sync/max_rel_diff"] < 1e-5
        sent = Checksum()
        list(sent.over(learner.named_weights()))
        assert checksums(split.workers) == {sent.digest}
        requests = [question(judge[1], item, "realism", 0) for item in world_items[:2]]
        answers = generate(split.workers, requests, 1, 0.0, 120, "test")
        assert probe_difference([g[0] for g in answers], *_learned(judge, requests, answers)).relative < 1e-5


def _learned(judge, requests, answers):
    from tests.workers.test_rollout import forward

    outputs = forward(judge, requests, answers)
    return outputs.logprobs, outputs.score_logprobs
