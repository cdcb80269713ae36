"""Bootstrap intervals: equal to naive resampling with the same draws, prompts and not items resampled, coverage,
undefined input."""

import math
import time

import pytest
import torch

from zr_ray.functional import correlation, draws, intervals, pairs


def random_items(seed=0, prompts=25, levels=2):
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(prompts).repeat_interleave(torch.randint(1, 6, (prompts,), generator=generator)) * 3
    group = group[torch.randperm(len(group), generator=generator)]
    human = torch.randn(len(group), generator=generator, dtype=torch.float64)
    predicted = 0.5 * human + torch.randn(len(group), generator=generator, dtype=torch.float64)
    return (predicted * levels).round() / levels, (human * levels).round() / levels, group


def test_draws_are_resamples():
    like = torch.empty(0)
    drawn = torch.cat(list(draws.prompt_draws(7, 500, 3, like)))
    assert drawn.shape == (500, 7) and (drawn.sum(-1) == 7).all() and (drawn.mean(0) - 1).abs().max() < 0.15
    assert torch.equal(drawn, torch.cat(list(draws.prompt_draws(7, 500, 3, like))))
    assert not torch.equal(drawn, torch.cat(list(draws.prompt_draws(7, 500, 4, like))))


@pytest.mark.parametrize(
    ("vectorized", "metric"), [(intervals.plcc_interval, correlation.plcc), (intervals.srcc_interval, correlation.srcc)]
)
def test_vectorized_correlations_equal_the_loop(vectorized, metric, monkeypatch):
    predicted, human, group = random_items()
    loop = intervals.bootstrap_interval(
        lambda items: metric(predicted[items], human[items]), group, resamples=200, seed=5
    )
    assert vectorized(predicted, human, group, resamples=200, seed=5) == pytest.approx(loop, abs=1e-9)
    assert loop[0] < metric(predicted, human) < loop[1]
    assert vectorized(1e4 + predicted, 7 * human - 3, group, resamples=200, seed=5) == pytest.approx(loop, abs=1e-6)
    monkeypatch.setattr(draws, "CELLS", 25 * 50)  # four parts of 50 resamples: same statistics, other draws allowed
    parts = vectorized(predicted, human, group, resamples=200, seed=5)
    parted_loop = intervals.bootstrap_interval(
        lambda items: metric(predicted[items], human[items]), group, resamples=200, seed=5
    )
    assert parts == pytest.approx(parted_loop, abs=1e-9)


def test_ratio_interval_equals_the_loop():
    predicted, human, group = random_items()
    correct, total = pairs.hpa_by_group(predicted, human, group)
    values = []
    for times in torch.cat(list(draws.prompt_draws(len(correct), 300, 1, correct))):
        right = sum(t * c for t, c in zip(times.tolist(), correct.tolist(), strict=True))
        values.append(right / sum(t * c for t, c in zip(times.tolist(), total.tolist(), strict=True)))
    values.sort()

    def quantile(level):  # linear interpolation between order statistics
        place = level * 299
        return values[int(place)] + (place - int(place)) * (values[min(int(place) + 1, 299)] - values[int(place)])

    low, high = intervals.ratio_interval(correct, total, resamples=300, seed=1)
    assert (low, high) == (pytest.approx(quantile(0.025), abs=1e-12), pytest.approx(quantile(0.975), abs=1e-12))
    narrow = intervals.ratio_interval(correct, total, resamples=300, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_prompts_are_resampled_not_items():
    """Ten copies of every item inside its prompt are no new evidence; ten times the prompts are."""
    predicted, human, group = random_items()
    copied = [t.repeat(10) for t in (predicted, human, group)]
    one, ten = intervals.plcc_interval(predicted, human, group), intervals.plcc_interval(*copied)
    assert ten == pytest.approx(one, abs=1e-9)
    more = intervals.plcc_interval(copied[0], copied[1], torch.cat([group + 1000 * n for n in range(10)]))
    assert 2.5 < (one[1] - one[0]) / (more[1] - more[0]) < 4  # sqrt(10)


def test_coverage_of_a_known_ratio():
    """Clustered trials with true rate 0.7: the 95 % interval contains it in about 95 % of 400 worlds."""
    generator = torch.Generator().manual_seed(0)
    total = torch.full((60,), 6.0)
    hits = 0
    for seed in range(400):
        rate = (0.7 + 0.2 * torch.randn(60, generator=generator)).clamp(
            0.4, 1.0
        )  # prompts differ; clamped symmetrically
        correct = torch.binomial(total, rate, generator=generator)
        low, high = intervals.ratio_interval(correct, total, resamples=300, seed=seed)
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 400 <= 0.98


def paired(better, worse):
    """Interval of the difference of two judges' ratios on the same draws."""
    values = [draws.resampled_ratios(*counts) for counts in (better, worse)]
    return draws.percentile_interval(values[0] - values[1])


def test_paired_difference():
    predicted, human, group = random_items(prompts=60)
    a = pairs.hpa_by_group(predicted, human, group)
    assert paired(a, a) == (0, 0)
    generator = torch.Generator().manual_seed(1)
    better = pairs.hpa_by_group(predicted + 0.6 * human, human, group)
    low, high = paired(better, a)
    assert 0 < low < (better[0].sum() / better[1].sum() - a[0].sum() / a[1].sum()).item() < high
    swapped = paired(a, better)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)
    # Pairing helps: two nearly equal judges differ by less than their own intervals are wide.
    near = pairs.hpa_by_group(predicted + 0.01 * torch.randn(len(group), generator=generator).double(), human, group)
    difference, alone = paired(near, a), intervals.ratio_interval(*a)
    assert difference[1] - difference[0] < 0.8 * (alone[1] - alone[0])


def test_undefined_input():
    predicted, human, group = random_items()
    nan_pair = (pytest.approx(math.nan, nan_ok=True),) * 2
    one_group, constant, empty = torch.zeros_like(group), torch.full_like(human, 0.1), torch.empty(0)
    broken = torch.where(torch.arange(len(human)) == 2, math.nan, predicted)
    for interval in (intervals.plcc_interval, intervals.srcc_interval):
        assert interval(predicted, human, one_group) == nan_pair
        assert interval(constant, human, group) == nan_pair and interval(predicted, constant, group) == nan_pair
        assert interval(broken, human, group) == nan_pair
        assert interval(empty, empty, empty.long()) == nan_pair
        with pytest.raises(ValueError, match="must all be"):
            interval(predicted, human[1:], group)
    assert intervals.ratio_interval(empty, empty) == nan_pair
    assert intervals.ratio_interval(torch.zeros(5), torch.zeros(5)) == nan_pair
    assert intervals.bootstrap_interval(lambda items: 1.0, empty.long()) == nan_pair
    assert intervals.bootstrap_interval(lambda items: math.nan, group, resamples=5) == nan_pair
    # A resample without one pair is left out, not counted as 0.
    assert intervals.ratio_interval(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 0.0])) == (1, 1)
    for settings, message in (({"resamples": 0}, "resamples"), ({"level": 1.0}, "level")):
        with pytest.raises(ValueError, match=message):
            intervals.ratio_interval(torch.ones(3), torch.ones(3), **settings)


def test_a_resample_of_one_repeated_prompt_is_undefined():
    """Three prompts, constant inside each: every ninth resample holds one value only and must not become rounding
    noise."""
    group = torch.arange(3).repeat_interleave(7)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        value = torch.rand(3, generator=generator, dtype=torch.float64)[group]
        other = value + torch.randn(
            21, generator=generator, dtype=torch.float64
        )  # varies inside a prompt: only x is constant there
        for interval, metric in (
            (intervals.plcc_interval, correlation.plcc),
            (intervals.srcc_interval, correlation.srcc),
        ):
            settings = {"resamples": 60, "level": 0.6}
            loop = intervals.bootstrap_interval(
                lambda items, m=metric, y=other, x=value: m(x[items], y[items]), group, **settings
            )
            assert interval(value, other, group, **settings) == pytest.approx(loop, abs=1e-9)


def test_intervals_are_fast():
    """A test set of 2,000 prompts x 4 images with 2,000 resamples, one thread."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(2000).repeat_interleave(4)
    human = torch.randint(2, 11, (8000,), generator=generator).double() / 2
    predicted = human + torch.randn(8000, generator=generator)
    start = time.perf_counter()
    intervals.ratio_interval(*pairs.hpa_by_group(predicted, human, group))
    intervals.plcc_interval(predicted, human, group)
    assert time.perf_counter() - start < 5  # 0.1 s alone on one core; the rest is room for a busy machine
