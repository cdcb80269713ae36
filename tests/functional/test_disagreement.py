"""Teacher against student by hand: sign of the bias, flips, items without a label, and nothing to say about nothing."""

import math

import pytest
import torch

from zr_ray.functional.disagreement import disagreement

BINS = torch.tensor([1.0, 2.0, 3.0])


def sure(*scores):
    """[N, 3] log of nearly certain distributions whose mean is the score, to 1e-3."""
    q = torch.full((len(scores), 3), 1e-9)
    for i, s in enumerate(scores):
        low = min(int(s) - 1, 1)
        q[i, low], q[i, low + 1] = low + 2 - s, s - low - 1
    return q.clamp_min(1e-9).log().log_softmax(-1)


def test_by_hand():
    teacher, student = sure(1.0, 2.0, 3.0, 2.0), sure(1.5, 2.0, 1.8, 2.5)
    group = torch.tensor([0, 0, 0, 1])
    found = disagreement(teacher, student, group, BINS)
    assert found["mu_gap"] == pytest.approx((0.5 + 0 + 1.2 + 0.5) / 4, abs=1e-5)
    assert found["mu_bias"] == pytest.approx((0.5 + 0 - 1.2 + 0.5) / 4, abs=1e-5)
    # teacher: 1 < 2 < 3 in group 0; student: 1.5 < 1.8 < 2: the pair (2, 3) is turned over
    assert found["flips"] == pytest.approx(1 / 3) and found["pairs"] == 3 and found["items"] == 4
    low, high = found["mu_gap_ci"]
    assert 0.499 < low <= found["mu_gap"] <= high < 0.567


def test_kl_is_the_teachers_expectation():
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    found = disagreement(teacher, student, torch.zeros(1, dtype=torch.long), BINS)
    assert found["kl"] == pytest.approx(0.25 * math.log(2)) and found["flips"] is None and found["pairs"] == 0


def test_equal_judges_do_not_disagree_and_nan_takes_no_part():
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(12, 3, generator=generator).log_softmax(-1)
    group = torch.arange(12) // 4
    same = disagreement(log_q, log_q, group, BINS)
    assert (
        same["mu_gap"] == same["mu_bias"] == same["flips"] == 0
        and same["kl"] == pytest.approx(0)
        and same["plcc"] == pytest.approx(1)
    )
    holes = log_q.clone()
    holes[[1, 6]] = math.nan
    other = torch.randn(12, 3, generator=generator).log_softmax(-1)
    kept = torch.tensor([i for i in range(12) if i not in (1, 6)])
    for a, b in ((holes, other), (other, holes)):
        whole, part = disagreement(a, b, group, BINS), disagreement(a[kept], b[kept], group[kept], BINS)
        assert whole["items"] == 10
        for name in ("mu_gap", "mu_bias", "kl", "plcc"):
            assert whole[name] == pytest.approx(part[name]), name
    # a student without an answer orders no pair, so those pairs of a teacher that has one are not counted either
    assert (
        disagreement(other, holes, group, BINS)["pairs"]
        == disagreement(holes, other, group, BINS)["pairs"]
        == 3 + 3 + 6
    )
    nothing = disagreement(log_q * math.nan, log_q, group, BINS)
    assert nothing["items"] == 0 and nothing["mu_gap"] is None and nothing["mu_gap_ci"] is None


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one shape"):
        disagreement(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(2), BINS)
