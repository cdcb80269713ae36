"""What proves a push in any precision: a checksum of what was read, and statistics that fit the dtype."""

import numpy as np
import pytest
import torch

from zr_ray.config.weights import SyncTolerance
from zr_ray.errors import WeightSyncError
from zr_ray.records import Judgement
from zr_ray.workers.weights import Checksum, check_probe, held_problem, make_buckets, probe_difference, read_buckets


def digest(named) -> str:
    made = Checksum()
    assert len(list(made.over(named))) == made.tensors
    return made.digest


@pytest.fixture()
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"b": (70, 3), "a": (1,), "c": (500,), "d": (2, 2)}
    return [(name, torch.randn(shape, generator=generator).bfloat16()) for name, shape in shapes.items()]


def test_buckets_bring_what_was_sent(weights):
    assert digest(read_buckets(make_buckets(weights, 300))) == digest(weights)  # files keep names in their order


@pytest.mark.parametrize(
    "broken",
    [
        lambda w: w[:-1],
        lambda w: [("b", w[0][1] + 0.01), *w[1:]],
        lambda w: [("d", w[0][1]), *w[1:3], ("b", w[3][1])],
        lambda w: [(n, v.float()) for n, v in w],
    ],
    ids=["lost", "of another step", "swapped", "another dtype"],
)
def test_other_weights_have_another_checksum(weights, broken):
    sent, read = digest(weights), digest(broken(weights))
    assert held_problem(3, [3, 3], sent, [sent, sent]) == ""
    assert "1 of 2 read " + read in held_problem(3, [3, 3], sent, [sent, read])
    assert "they hold [3, 2]" in held_problem(3, [3, 2], sent, [sent, sent])


def judgements(noise):
    one = [Judgement("k", 0, np.zeros(len(row), np.int32), row, 0, row[:2], 0) for row in noise]
    zeros = torch.zeros(len(noise), noise.shape[1])
    return probe_difference(one, zeros, zeros[:, :2])


def test_a_mean_with_a_tail_is_what_16_bit_is_held_to():
    rounding = np.random.default_rng(0).exponential(9e-3, (40, 9)).astype(np.float32)
    found = judgements(rounding)
    assert found.largest > 0.05 > found.high > found.mean  # a maximum of .05 would stop a healthy run
    check_probe(found, SyncTolerance("mean", 3e-2), 1)
    with pytest.raises(WeightSyncError, match=r"must agree within 1e-05, .* \(largest; in nats the largest"):
        check_probe(found, SyncTolerance("largest", 1e-5), 1)
    layer = rounding.copy()
    layer[:, 0] = 0.17  # one token in nine is far off, twice an answer: the mean is within its limit, the tail is not
    tail = judgements(layer)
    assert tail.mean < 4e-2
    with pytest.raises(WeightSyncError, match="stale or wrongly mapped"):
        check_probe(tail, SyncTolerance("mean", 4e-2), 1)


def test_rounding_grows_with_what_is_rounded():
    """Twelve units in the last place of -9 are 1.1e-5 nats, 1.3e-6 of it, and pass; as much at -.5 does not."""
    learner, off = np.array([[-9.0, -4.0, -0.5]], np.float32), 12 * np.spacing(np.float32(9))

    def found(at):
        engine = learner.copy()
        engine[0, at] += off
        answers = [Judgement("k", 0, np.zeros(3, np.int32), engine[0], 0, None, None)]
        return probe_difference(answers, torch.from_numpy(learner), torch.zeros(1, 2))

    exact = SyncTolerance("largest", 1e-5)
    check_probe(found(0), exact, 1)
    assert found(0).largest == found(2).largest > 1e-5 > found(0).relative
    with pytest.raises(WeightSyncError, match="must agree within 1e-05"):
        check_probe(found(2), exact, 1)


def test_what_is_not_finite_is_never_within_a_tolerance():
    bad = np.zeros((2, 3), np.float32)
    bad[1, 2] = np.nan
    for statistic in ("mean", "largest"):
        with pytest.raises(WeightSyncError):
            check_probe(judgements(bad), SyncTolerance(statistic, 1e9), 1)
