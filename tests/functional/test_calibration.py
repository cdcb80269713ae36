"""Votes under a distribution: NLL, CRPS against its two definitions, proper scoring; calibration of win
probabilities."""

import math

import pytest
import torch

from zr_ray.functional import calibration
from zr_ray.functional.rank import win_probability

BINS = torch.arange(9, dtype=torch.float64) / 2 + 1


def test_vote_counts():
    scores = torch.tensor([[1.0, 1.0, 5.0], [3.5, math.nan, math.nan], [math.nan, math.nan, math.nan]])
    counts = calibration.vote_counts(scores, BINS)
    assert counts[0].tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert counts[1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0] and counts[2].sum() == 0
    with pytest.raises(ValueError, match="one of the bins"):
        calibration.vote_counts(torch.tensor([[1.2]]), BINS)


def test_nll_by_hand():
    q = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    votes = torch.tensor([[1, 1, 0], [3, 0, 0], [0, 1, 0], [0, 0, 0]])
    nll = calibration.annotator_nll(q.log(), votes)
    assert nll[:2].tolist() == pytest.approx([1.5 * math.log(2), 0.0], abs=1e-7)
    assert nll[2] == math.inf and nll[3].isnan()
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        calibration.annotator_nll(q.log(), votes[:, :2])


@pytest.mark.parametrize("bins", [BINS, torch.tensor([1.0, 1.5, 3.0, 3.25, 5.0]).double()])
def test_crps_against_its_other_definition(bins):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, len(bins), generator=generator, dtype=torch.float64).softmax(-1)
    votes = torch.randint(4, (5, len(bins)), generator=generator).double()
    got = calibration.crps(q, bins, votes)
    s = bins.tolist()
    for n in range(5):
        p, total = q[n].tolist(), 0.0
        spread = sum(p[k] * p[j] * abs(s[k] - s[j]) for k in range(len(s)) for j in range(len(s))) / 2
        for v, times in enumerate(votes[n].tolist()):
            total += times * (sum(p[k] * abs(s[k] - s[v]) for k in range(len(s))) - spread)
        assert got[n].item() == pytest.approx(total / votes[n].sum().item(), abs=1e-9)


def test_crps_of_a_certain_judge_is_the_absolute_error():
    q, votes = torch.eye(9)[[2, 8, 4]], torch.zeros(3, 9)
    votes[0, 2] = 5
    votes[1, [0, 6]] = 1  # |5 - 1| and |5 - 4|
    crps = calibration.crps(q, BINS, votes)
    assert crps[:2].tolist() == [0, 2.5] and crps[2].isnan()


def test_both_scores_are_proper():
    """Expected over votes drawn from p, no q beats p itself."""
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(9, generator=generator, dtype=torch.float64).softmax(-1)
    others = torch.randn(200, 9, generator=generator, dtype=torch.float64).softmax(-1)
    near = (p.log() + 0.05 * torch.randn(200, 9, generator=generator, dtype=torch.float64)).softmax(-1)
    q = torch.cat([p[None], others, near])
    votes = p.expand_as(q)  # shares instead of counts: the expectation
    assert calibration.annotator_nll(q.log(), votes).argmin() == 0
    assert calibration.crps(q, BINS, votes).argmin() == 0


def test_reliability_curve_by_hand():
    probability, outcome = torch.tensor([0.1, 0.3, 0.6, 0.8, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.5, 1.0])
    predicted, observed, count = calibration.reliability_curve(probability, outcome, bins=4)
    assert count.tolist() == [1, 1, 1, 2]
    assert predicted.tolist() == pytest.approx([0.1, 0.3, 0.6, 0.9]) and observed.tolist() == pytest.approx(
        [0, 1, 1, 0.75]
    )
    predicted, observed, count = calibration.reliability_curve(probability[:1], outcome[:1], bins=4)
    assert predicted[1:].isnan().all() and observed[1:].isnan().all() and count.sum() == 1
    for bad in (1.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            calibration.reliability_curve(torch.tensor([bad]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="bins >= 1"):
        calibration.reliability_curve(probability, outcome, bins=0)


def test_win_calibration():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20_000, generator=generator, dtype=torch.float64)
    outcome = (torch.rand(20_000, generator=generator) < probability).double()
    assert calibration.win_calibration_error(probability, outcome) < 0.015  # sampling noise of 2,000 pairs per bin
    overconfident = (probability > 0.5).double()
    assert calibration.win_calibration_error(overconfident, outcome) == pytest.approx(
        0.25, abs=0.01
    )  # says 1, is right 3 of 4 times
    swapped = calibration.win_calibration_error(1 - probability, 1 - outcome)
    assert swapped == pytest.approx(calibration.win_calibration_error(probability, outcome), abs=1e-3)
    assert calibration.win_calibration_error(torch.tensor([0.8, 0.8]), torch.tensor([1.0, 0.0])) == pytest.approx(0.3)
    # Both ways round: 0.05 and 1 - 0.95 share a bin, one right and one wrong, |0.05 - 0.5|; as called alone it would be
    # (0.05 + 0.95) / 2.
    lone = torch.tensor([0.05, 0.95]), torch.tensor([0.0, 0.0])
    assert calibration.win_calibration_error(*lone) == pytest.approx(0.45)
    assert calibration.win_calibration_error(torch.tensor([0.95, 0.95]), torch.tensor([1.0, 0.0])) == pytest.approx(
        0.45
    )
    assert calibration.win_calibration_error(torch.tensor([0.5]), torch.tensor([0.5])) == 0
    assert math.isnan(calibration.win_calibration_error(torch.empty(0), torch.empty(0)))
    log_q = torch.randn(50, 2, 9, generator=generator).log_softmax(-1)
    assert (
        0
        <= calibration.win_calibration_error(win_probability(log_q[:, 0], log_q[:, 1]).clamp(0, 1), torch.ones(50))
        <= 1
    )
