"""Rows, differences and verdicts on made-up predictions: seeds pooled by hand, pairing by prompt, nothing claimed
without evidence."""

import math

import pytest
import torch

from zr_ray.functional import correlation, intervals, pairs
from zr_ray.report.compare import TestSet, agreement_over_seeds, difference, measure, verdict
from zr_ray.rubric import PAPER

PROMPTS = 80


def made_up(seed=0):
    generator = torch.Generator().manual_seed(seed)
    human = 1 + 4 * torch.rand(4 * PROMPTS, 4, generator=generator, dtype=torch.float64)
    human[:, 3] = math.nan
    return TestSet(human, torch.arange(4 * PROMPTS) // 4, resamples=300, seed=1, rubric=PAPER)


def judge(test, noise, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    return test.human.nan_to_num(3.0) + noise * torch.randn(test.human.shape, generator=generator, dtype=torch.float64)


def test_seeds_are_pooled():
    test = made_up()
    mus = [judge(test, 0.5, 0), judge(test, 2.0, 1)]
    value, draws = measure(mus, test, "hpa", "realism")
    counts = [pairs.human_pair_accuracy(mu[:, 1], test.human[:, 1], test.prompt) for mu in mus]
    assert value == pytest.approx(sum(c for c, _ in counts) / sum(t for _, t in counts)) and len(draws) == 300
    value, draws = measure(mus, test, "plcc", "realism")
    assert value == pytest.approx(sum(correlation.plcc(mu[:, 1], test.human[:, 1]) for mu in mus) / 2)
    one = measure(mus[:1], test, "plcc", "realism")[1]
    assert torch.allclose(
        2 * draws - one, measure(mus[1:], test, "plcc", "realism")[1]
    )  # the same draws for both seeds


def test_one_seed_agrees_with_the_ordinary_row():
    test = made_up()
    mu = judge(test, 1.0, 0)
    found = agreement_over_seeds([mu], test)
    flat = pairs.hpa_by_group(mu[:, 0], test.human[:, 0], test.prompt)
    assert found["dimensions"]["alignment"]["hpa_ci"] == pytest.approx(
        list(intervals.ratio_interval(*flat, resamples=300, seed=1))
    )
    assert set(found["dimensions"]) == {"alignment", "realism", "aesthetics"}
    known = test.human.isfinite()
    assert found["pooled"]["plcc"] == pytest.approx(correlation.plcc(mu[known], test.human[known]))
    assert found["pooled"]["srcc"] == pytest.approx(correlation.srcc(mu[known], test.human[known]))


def test_a_clear_difference_holds_and_its_reverse_does_not():
    test = made_up()
    good, bad = ({s: judge(test, noise, 10 * noise + s) for s in (0, 1, 2)} for noise in (1, 3))
    found = difference(good, bad, test, "hpa")
    assert found["verdict"] == "holds" and 0 < found["ci"][0] < found["difference"] < found["ci"][1]
    assert found["per_seed"].keys() == {0, 1, 2}
    back = difference(bad, good, test, "hpa")
    assert back["verdict"] == "does not hold" and back["ci"] == pytest.approx([-found["ci"][1], -found["ci"][0]])


def test_the_same_judge_cannot_be_told_apart_and_missing_rows_are_said():
    test = made_up()
    one = {0: judge(test, 1, 0), 1: judge(test, 1, 1)}
    same = difference(one, one, test, "plcc")
    assert same["difference"] == 0 and same["verdict"] == "cannot tell"
    assert difference(one, {}, test, "hpa")["verdict"] == "cannot tell (not run)"
    assert list(difference(one, {1: one[1], 5: one[0]}, test, "hpa")["per_seed"]) == [1]


@pytest.mark.parametrize(
    ("ci", "seeds", "expected"),
    [
        ([0.01, 0.05], [0.02, 0.04], "holds"),
        ([0.01, 0.05], [-0.01, 0.07], "cannot tell"),
        ([-0.01, 0.05], [0.02, 0.02], "cannot tell"),
        ([-0.05, -0.01], [-0.03, -0.02], "does not hold"),
        (None, [0.1], "cannot tell"),
    ],
)
def test_verdicts(ci, seeds, expected):
    assert verdict(ci, seeds) == expected


def test_a_malformed_answer_costs_its_pairs():
    test = made_up()
    mu = test.human.nan_to_num(3.0)
    assert measure([mu], test, "hpa")[0] == 1.0
    broken = mu.clone()
    broken[0, 0] = math.nan
    assert measure([broken], test, "hpa")[0] == pytest.approx(1 - 3 / (3 * 6 * PROMPTS))
    assert measure([broken], test, "plcc")[0] == pytest.approx(1.0)
