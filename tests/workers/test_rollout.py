"""The rollout worker on a real vLLM engine: same log-probs as the learner's forward, versions, pushes that are
proved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zr_ray.config.weights import SyncTolerance, WeightsSection
from zr_ray.data.encoded import pixels
from zr_ray.errors import DataError, WeightSyncError
from zr_ray.judging.ask import generate, question, score, workers_of_rank
from zr_ray.loops.push import WeightPush
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.packing import Row
from zr_ray.records import EncodedImage
from zr_ray.rubric import DIMENSIONS
from zr_ray.workers.recovery import Recovery
from zr_ray.workers.weights import make_buckets, probe_difference


@pytest.fixture(scope="module")
def judge(judge_path):
    return load_packed_judge(judge_path, torch.float32)


@pytest.fixture(scope="module")
def requests(judge, world_items):
    return [question(judge[1], item, d, seed=10 * i) for i, item in enumerate(world_items[:3]) for d in DIMENSIONS]


def forward(judge, requests, groups):
    module, _, packer = judge
    rows = [
        Row(r.token_ids, r.image, tuple(j.token_ids for j in g), tuple(j.score_index for j in g))
        for r, g in zip(requests, groups, strict=True)
    ]
    with torch.no_grad():
        return module(packer.pack(rows))


def test_engine_and_learner_agree_and_samples_are_well_formed(fleet, judge, requests):
    groups = generate(fleet.workers, requests, 4, 1.0, 120, "test")
    assert [len(g) for g in groups] == [4] * len(requests)
    flat = [j for g in groups for j in g]
    outputs = forward(judge, requests, groups)
    assert probe_difference(flat, outputs.logprobs, outputs.score_logprobs).largest < 1e-5
    assert np.mean([j.score_index is not None for j in flat]) > 0.9
    assert not {int(t) for j in flat for t in j.token_ids} & set(judge[1].forbidden_ids)
    assert all(j.key == r.key and j.sample == n for r, g in zip(requests, groups, strict=True) for n, j in enumerate(g))


def test_same_seeds_give_the_same_traces_and_samples_differ(fleet, requests):
    first, second = (generate(fleet.workers, requests, 4, 1.0, 120, "test") for _ in range(2))
    for a, b in zip((j for g in first for j in g), (j for g in second for j in g), strict=True):
        assert np.array_equal(a.token_ids, b.token_ids)
    assert any(not np.array_equal(g[0].token_ids, j.token_ids) for g in first for j in g[1:])


def test_length_limit_of_one_call(fleet, requests):
    import ray

    groups = ray.get(fleet.workers[0].generate.remote(requests[:2], 1, 0.0, 3), timeout=120)
    assert [len(g[0].token_ids) for g in groups] == [3, 3] and groups[0][0].score_index is None


def test_direct_score_is_the_distribution_after_the_marker(fleet, judge, world_items):
    module, text, packer = judge
    asked = [question(text, item, "realism", 0, direct=True) for item in world_items[:4]]
    answers = score(fleet.workers, asked, 120, "test")
    assert all(len(a.token_ids) == 1 and a.score_index == 0 for a in answers)
    outputs = forward(judge, asked, [[a] for a in answers])
    assert probe_difference(answers, outputs.logprobs, outputs.score_logprobs).largest < 1e-5


class FakeLearner:
    """Not an engine: the learner's verbs that a push needs, around a transformers model without DeepSpeed."""

    rank, world, device = 0, 1, torch.device("cpu")

    def __init__(self, judge):
        self.judge = judge

    def named_weights(self):
        return self.judge[0].model.named_parameters()

    def described_weights(self):
        return [(name, value.to("meta")) for name, value in self.named_weights()]

    def require_finite_weights(self):
        assert all(bool(weight.isfinite().all()) for _, weight in self.named_weights())

    @torch.no_grad()
    def forward(self, rows):
        return self.judge[0](self.judge[2].pack(rows))

    def barrier(self):
        pass

    def reduce_max(self, value):
        return value


def test_push_is_verified_and_a_stale_engine_is_noticed(fleet, rollout_config, judge_path, requests, world_items):
    judge = load_packed_judge(judge_path, torch.float32)
    learner = FakeLearner(judge)
    exact, recovery = SyncTolerance("largest", 1e-5), Recovery(fleet.workers, rollout_config)
    push = WeightPush(recovery, judge[1], world_items[0], WeightsSection(bucket_mib=1), exact, 120)
    assert push(learner, 1)["sync/max_abs_diff"] < 1e-5
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in judge[0].model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    groups = generate(fleet.workers, requests[:2], 1, 0.0, 120, "test")
    assert groups[0][0].policy_version == 1
    stale = forward(judge, requests[:2], groups)
    assert (
        probe_difference([g[0] for g in groups], stale.logprobs, stale.score_logprobs).largest > 1e-3
    )  # the probe can fail
    assert push(learner, 2)["sync/max_abs_diff"] < 1e-5  # images seen before the push: no cache holds old features
    assert generate(fleet.workers, requests[:1], 1, 0.0, 120, "test")[0][0].policy_version == 2

    class Partial(FakeLearner):
        def named_weights(self):
            for name, value in super().named_weights():
                yield name, (torch.zeros_like(value) if "layers.0.mlp" in name else value)

    with pytest.raises(WeightSyncError, match="stale or wrongly mapped weights"):
        push(Partial(judge), 3)
    push(FakeLearner(load_packed_judge(judge_path, torch.float32)), 4)  # leave the shared engine as it was


def test_a_push_overlaps_with_what_an_engine_is_at_and_is_proved_later(
    fleet, rollout_config, judge_path, requests, world_items
):
    """Asked before it: old weights. Asked behind it, before its proof: new ones. A learner that went on is noticed."""
    import ray

    judge = load_packed_judge(judge_path, torch.float32)
    learner, worker = FakeLearner(judge), fleet.workers[0]
    exact, recovery = SyncTolerance("largest", 1e-5), Recovery(fleet.workers, rollout_config)
    push = WeightPush(recovery, judge[1], world_items[0], WeightsSection(bucket_mib=1), exact, 120)
    push(learner, 5)
    assert push.finish(learner) == {}, "nothing is under way"
    before = worker.generate.remote(requests, 2, 1.0, None, 5)
    push.begin(learner, 6)
    behind = worker.generate.remote(requests, 2, 1.0, None, 6)
    newer = worker.generate.remote(requests[:1], 1, 1.0, None, 5, 0, True)
    proof = push.finish(learner)
    assert proof["sync/max_abs_diff"] < 1e-5 and proof["sync/version"] == 6.0
    for reference, version in ((before, 5), (behind, 6), (newer, 6)):
        groups = ray.get(reference, timeout=120)
        assert {j.policy_version for group in groups for j in group} == {version}
    push.begin(learner, 7)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in judge[0].model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    with pytest.raises(WeightSyncError, match="after the push of version 7"):
        push.finish(learner)
    push(FakeLearner(load_packed_judge(judge_path, torch.float32)), 8)  # leave the shared engine as it was


def test_the_proof_goes_along_with_the_rollouts_of_a_push(fleet, rollout_config, judge_path, requests, world_items):
    """Engines answer it in the batch that samples; what was sampled is the same as without it, and a learner with
    other weights is noticed before it trains on it."""
    judge = load_packed_judge(judge_path, torch.float32)
    learner = FakeLearner(judge)
    exact, recovery = SyncTolerance("largest", 1e-5), Recovery(fleet.workers, rollout_config)
    push = WeightPush(recovery, judge[1], world_items[0], WeightsSection(bucket_mib=1), exact, 120)
    push(learner, 9)
    alone = push.sample(fleet.workers, requests, 4, "test")
    push.begin(learner, 10)
    along = push.sample(fleet.workers, requests, 4, "test")
    proof = push.finish(learner)
    assert proof["sync/max_abs_diff"] < 1e-5 and proof["sync/version"] == 10.0
    for one, other in zip(alone, along, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.key, a.sample, b.policy_version) == (b.key, b.sample, 10)
            assert np.array_equal(a.token_ids, b.token_ids) and np.abs(a.logprobs - b.logprobs).max() < 1e-5
    push.begin(learner, 11)
    with torch.no_grad():
        for parameter in judge[0].model.parameters():
            parameter.mul_(1.05)
    assert len(push.sample(fleet.workers, requests[:1], 2, "test")) == 1
    with pytest.raises(WeightSyncError, match="after the push of version 11"):
        push.finish(learner)
    push(FakeLearner(load_packed_judge(judge_path, torch.float32)), 12)  # leave the shared engine as it was


def test_buckets_hold_every_parameter_once(judge):
    from zr_ray.workers.weights import read_buckets

    named = list(judge[0].model.named_parameters())
    blobs = make_buckets(named, 2**20)
    assert len(blobs) > 1
    back = list(read_buckets(blobs))
    assert sorted(n for n, _ in back) == sorted(n for n, _ in named)
    assert all(torch.equal(v, dict(back)[n]) for n, v in named)


def test_ranks_share_workers():
    assert workers_of_rank(["a", "b", "c"], 0, 2) == ["a", "c"]
    assert workers_of_rank(["a"], 1, 2) == ["a"]


def test_an_image_is_answered_alike_as_a_file_and_as_pixels(fleet, requests):
    arrays = [replace(r, image=pixels(r.image)) for r in requests]
    assert all(isinstance(r.image, EncodedImage) for r in requests)
    files, plain = (generate(fleet.workers, asked, 2, 1.0, 120, "test") for asked in (requests, arrays))
    for a, b in zip((j for g in files for j in g), (j for g in plain for j in g), strict=True):
        assert np.array_equal(a.token_ids, b.token_ids) and np.array_equal(a.logprobs, b.logprobs)


def test_a_file_that_is_damaged_behind_its_header_is_named(fleet, judge, world_items, tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(world_items[0].image.read_bytes()[:-100])
    asked = question(judge[1], replace(world_items[0], image=path), "realism", 0)
    with pytest.raises(DataError, match=r"^[^\n]*cut.png: wanted a decodable image[^\n]*$"):
        generate(fleet.workers, [asked], 1, 0.0, 120, "test")
