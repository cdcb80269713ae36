"""Correlations against scipy to 1e-9, ties included; degenerate input gives nan."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from zr_ray.functional import correlation, intervals

ALL = (correlation.plcc, correlation.srcc, correlation.krcc, correlation.logistic4_plcc)


def random_items(seed, size=60, levels=None):
    generator = torch.Generator().manual_seed(seed)
    human = torch.randn(size, generator=generator, dtype=torch.float64)
    predicted = 0.6 * human + torch.randn(size, generator=generator, dtype=torch.float64)
    if levels:  # coarse values: many ties
        predicted, human = (predicted * levels).round() / levels, (human * levels).round() / levels
    return predicted, human


@pytest.mark.parametrize("levels", [None, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_against_scipy(seed, levels):
    x, y = random_items(seed, levels=levels)
    for ours, theirs in (
        (correlation.plcc, stats.pearsonr),
        (correlation.srcc, stats.spearmanr),
        (correlation.krcc, stats.kendalltau),
    ):
        assert ours(x, y) == pytest.approx(theirs(x.numpy(), y.numpy()).statistic, abs=1e-9)
    assert torch.equal(correlation.average_ranks(x), torch.from_numpy(stats.rankdata(x.numpy())))


def test_kendall_and_logistic_in_parts(monkeypatch):
    x, y = random_items(7, size=53, levels=2)
    monkeypatch.setattr(correlation, "_KENDALL_CELLS", 200)  # 3 rows at a time
    whole = correlation.logistic4_plcc(x, y)
    monkeypatch.setattr(correlation, "_SIGMOID_CELLS", 3000)
    assert correlation.logistic4_plcc(x, y) == pytest.approx(whole, abs=1e-12)
    assert correlation.krcc(x, y) == pytest.approx(stats.kendalltau(x.numpy(), y.numpy()).statistic, abs=1e-12)


def test_hand_numbers_and_invariance():
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert correlation.plcc(x, y) == pytest.approx(0.8) and correlation.srcc(x, y) == pytest.approx(0.8)
    assert correlation.krcc(x, y) == pytest.approx(4 / 6)  # 5 concordant, 1 discordant
    assert correlation.plcc(2 * x + 7, y) == pytest.approx(0.8) and correlation.plcc(-x, y) == pytest.approx(-0.8)
    assert correlation.srcc(x.exp(), y) == pytest.approx(0.8) and correlation.krcc(x.exp(), y) == pytest.approx(4 / 6)
    offset = torch.arange(5, dtype=torch.float64) + 1e8  # float32 sums would lose everything
    assert correlation.plcc(offset, offset) == pytest.approx(1, abs=1e-15)


def vqeg(x, b1, b2, b3, b4):
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))


@pytest.mark.parametrize("seed", range(4))
def test_logistic_fit_against_scipy(seed):
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(80, generator=generator, dtype=torch.float64) + 1
    y = torch.from_numpy(vqeg(x.numpy(), 4.5, 1.3, 2.8, 0.4)) + 0.3 * torch.randn(
        80, generator=generator, dtype=torch.float64
    )
    start = (y.max().item(), y.min().item(), x.mean().item(), x.std().item() / 4)
    best, _ = optimize.curve_fit(vqeg, x.numpy(), y.numpy(), p0=start, maxfev=20000, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    wanted = stats.pearsonr(vqeg(x.numpy(), *best), y.numpy()).statistic
    assert correlation.logistic4_plcc(x, y) == pytest.approx(wanted, abs=1e-9)
    assert correlation.logistic4_plcc(x, y) > correlation.plcc(x, y) + 0.005
    assert correlation.logistic4_plcc(-3 * x + 2, -y) == pytest.approx(wanted, abs=1e-7)


def test_logistic_fit_on_awkward_data():
    generator = torch.Generator().manual_seed(0)
    exact = torch.linspace(-4, 4, 50).double()
    assert correlation.logistic4_plcc(exact, exact.sigmoid() * 3 + 1) == pytest.approx(1, abs=1e-9)
    assert correlation.logistic4_plcc(exact, 2 * exact) == pytest.approx(
        1, abs=1e-6
    )  # a line is a logistic of infinite width
    assert correlation.logistic4_plcc(exact, (exact > 0.3).double()) == pytest.approx(
        1, abs=1e-6
    )  # a step is one of width 0
    falling = correlation.logistic4_plcc(exact, -exact + 0.1 * torch.randn(50, generator=generator).double())
    assert -1 < falling < -0.99  # an anti-correlated judge is not a good one
    for size in (5, 6, 20, 200):
        for _ in range(10):
            x = torch.randn(size, generator=generator).double() ** 3  # heavy tails
            y = x.sign() * x.abs() ** 0.3 + torch.randn(size, generator=generator).double()
            value, raw = correlation.logistic4_plcc(x, y), correlation.plcc(x, y)
            assert abs(raw) - 1e-4 <= abs(value) <= 1


def test_differences_that_are_rounding_are_a_constant():
    human = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 2.5])
    noise = torch.tensor([3.0, -1.0, 2.0, -2.0, 1.0, 0.0]).double()
    collapsed = 3.2 + 1e-12 * noise  # a judge that answers the same on every image
    for metric in ALL:
        assert math.isnan(metric(collapsed, human)) and math.isnan(metric((3.2 + 1e-7 * noise).float(), human))
        assert not math.isnan(metric(3.2 + 1e-4 * noise, human))  # little, but more than rounding
        assert not math.isnan(metric(1e-9 * noise, human))  # small numbers are not small differences
    assert correlation.why_undefined(collapsed, human) == "constant prediction"
    assert correlation.why_undefined(human, collapsed) == "constant human score"
    assert correlation.why_undefined(human[:1], human[:1]) == "fewer than 2 items"
    assert correlation.why_undefined(human, human) is None
    group = torch.arange(6)
    both = (intervals.plcc_interval, intervals.srcc_interval)
    assert all(math.isnan(bound) for interval in both for bound in interval(collapsed, human, group, 50))


def test_degenerate_input_is_nan():
    two, same = torch.tensor([1.0, 2.0]), torch.full((6,), 0.1)
    line = torch.arange(6.0)
    for metric in ALL:
        assert math.isnan(metric(torch.empty(0), torch.empty(0)))
        assert math.isnan(metric(torch.ones(1), torch.ones(1)))
        assert math.isnan(metric(same, line)) and math.isnan(metric(line, same))
        assert math.isnan(metric(torch.where(line == 3, math.nan, line), line))
        with pytest.raises(ValueError, match="must both be"):
            metric(line, line[1:])
    assert math.isnan(correlation.logistic4_plcc(line[:4], line[:4]))  # four parameters go through any four points
    assert all(metric(two, two) == pytest.approx(1, abs=1e-12) for metric in ALL[:3])
