"""Resampled values and the intervals made of them: equal to naive loops over the same draws."""

import math

import pytest
import torch

from zr_ray.functional import correlation, draws, intervals, resampling


def random_items(seed=0, prompts=20):
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(prompts).repeat_interleave(torch.randint(1, 5, (prompts,), generator=generator)) * 7
    human = torch.randn(len(group), generator=generator, dtype=torch.float64)
    predicted = 0.6 * human + torch.randn(len(group), generator=generator, dtype=torch.float64)
    return (2 * predicted).round() / 2, (2 * human).round() / 2, group


def test_krcc_interval_equals_the_loop():
    predicted, human, group = random_items()
    loop = intervals.bootstrap_interval(
        lambda items: correlation.krcc(predicted[items], human[items]), group, resamples=150, seed=3
    )
    assert resampling.krcc_interval(predicted, human, group, resamples=150, seed=3) == pytest.approx(loop, abs=1e-9)
    assert loop[0] < correlation.krcc(predicted, human) < loop[1]
    constant = torch.ones_like(human)
    assert all(map(math.isnan, resampling.krcc_interval(constant, human, group)))


def test_resampled_plcc_is_what_the_interval_is_made_of():
    predicted, human, group = random_items()
    values = resampling.resampled_plcc(predicted, human, group, resamples=200, seed=2)
    assert draws.percentile_interval(values) == intervals.plcc_interval(predicted, human, group, resamples=200, seed=2)


def test_a_missing_prediction_leaves_the_draws_alone():
    """Two judges stay paired although one has no answer for some prompt: its value is that of the items that are
    left."""
    predicted, human, group = random_items()
    gone = group == group[0]
    broken = torch.where(gone, math.nan, predicted)
    values = resampling.resampled_plcc(broken, human, group, resamples=40, seed=2)
    prompts, place = group.unique(return_inverse=True)
    drawn = torch.cat(list(draws.prompt_draws(len(prompts), 40, 2, group)))
    for value, times in zip(values, drawn, strict=True):
        items = torch.arange(len(group)).repeat_interleave((times[place] * ~gone).long())
        assert value.item() == pytest.approx(correlation.plcc(predicted[items], human[items]), abs=1e-9)
    assert len(resampling.resampled_plcc(torch.full_like(human, math.nan), human, group)) == 0


def test_sums_interval_equals_the_ratio_interval():
    correct, total = torch.tensor([1.0, 2, 0, 3, 1]), torch.tensor([2.0, 3, 1, 3, 4])
    sums = torch.stack([correct, total], -1)
    interval = resampling.sums_interval(sums, lambda s: s[:, 0] / s[:, 1], resamples=300, seed=4)
    assert interval == pytest.approx(intervals.ratio_interval(correct, total, resamples=300, seed=4), abs=1e-12)


def test_differences_of_resampled_ratios_are_paired():
    correct, total = torch.tensor([1.0, 2, 0, 3, 1]), torch.tensor([2.0, 3, 1, 3, 4])
    better = torch.tensor([2.0, 2, 1, 3, 2])
    values = [draws.resampled_ratios(c, total, 300, 4) for c in (better, correct)]
    # one more right, one less wrong in three prompts: whatever is drawn of both together, better is not worse
    low, high = draws.percentile_interval(values[0] - values[1])
    apart = [draws.resampled_ratios(c, total, 300, seed) for c, seed in ((better, 4), (correct, 5))]
    unpaired = draws.percentile_interval(apart[0] - apart[1])
    assert 0 <= low < high and unpaired[0] < 0 and high - low < unpaired[1] - unpaired[0]
