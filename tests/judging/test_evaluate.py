"""Agreement rows by hand: pairs stay inside a prompt and a dimension, a missing score is wrong in HPA and absent from
correlations."""

import math
from pathlib import Path

import pytest
import torch

from zr_ray.judging.evaluate import agreement, human_scores, reliability, true_scores
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, PAPER


def items(groups, scores):
    return [
        AnnotatedImage(str(i), g, "test", "p", Path("x.png"), dict(zip(DIMENSIONS, s, strict=True)))
        for i, (g, s) in enumerate(zip(groups, scores, strict=True))
    ]


FOUR = items(
    ["a", "a", "b", "b"], [(1.0, 2.0, 3.0, 4.0), (2.0, 2.0, 3.5, 5.0), (5.0, 1.0, 1.0, 1.0), (4.0, 3.0, 2.0, 1.0)]
)


def test_perfect_and_reversed():
    human = human_scores(FOUR, PAPER)
    perfect = agreement(human, human, FOUR, PAPER, 50, 0)
    assert perfect["pooled"]["hpa"] == 1.0 and perfect["pooled"]["plcc"] == pytest.approx(1.0)
    assert perfect["pooled"]["pairs"] == 6 and perfect["pooled"]["items"] == 16  # two of the eight pairs are tied
    assert agreement(-human, human, FOUR, PAPER, 50, 0)["pooled"]["hpa"] == 0.0
    assert perfect["dimensions"]["realism"]["pairs"] == 1
    assert (
        agreement(human, human, FOUR, PAPER, 50, 0)["dimensions"]["aesthetics"]["margin_hpa"] == 1.0
    )  # only b's gap of 1 exceeds 0.5


def test_pairs_never_cross_prompts_or_dimensions():
    human = human_scores(FOUR, PAPER)
    shifted = human + torch.tensor([100.0, 100.0, 0.0, 0.0])[:, None] + torch.tensor([1000.0, 0.0, 50.0, 7.0])
    assert agreement(shifted, human, FOUR, PAPER, 50, 0)["pooled"]["hpa"] == 1.0


def test_missing_score_is_wrong_in_hpa_and_left_out_of_correlations():
    human = human_scores(FOUR, PAPER)
    mu = human.clone()
    mu[0, 0] = math.nan
    got = agreement(mu, human, FOUR, PAPER, 50, 0)
    assert got["dimensions"]["alignment"]["hpa"] == 0.5 and got["dimensions"]["alignment"]["items"] == 3
    assert got["dimensions"]["alignment"]["plcc"] == pytest.approx(1.0)


def test_constant_judge_is_undefined_not_zero():
    human = human_scores(FOUR, PAPER)
    got = agreement(torch.full_like(human, 3.0), human, FOUR, PAPER, 50, 0)["pooled"]
    assert got["plcc"] is None and got["plcc_ci"] is None and got["hpa"] == 0.0  # ties are wrong


def test_human_scores_aggregate_and_leave_gaps():
    some = [
        AnnotatedImage("1", "a", "test", "p", Path("x"), {"realism": (1.0, 2.0, 2.0, 3.0, 5.0)}, truth={"realism": 2.5})
    ]
    scores = human_scores(some, PAPER)
    assert scores[0, 1].item() == pytest.approx(7 / 3) and scores[0].isnan().tolist() == [True, False, True, True]
    assert true_scores(some, PAPER) is None


def test_reliability_groups_are_sorted_and_count_everything():
    mu = torch.tensor([3.0, 1.0, math.nan, 2.0, 5.0], dtype=torch.float64)
    human = torch.tensor([3.0, 1.5, 2.0, 2.0, 4.0], dtype=torch.float64)
    curve = reliability(mu, human, bins=2)
    assert curve == {"predicted": [1.5, 4.0], "human": [1.75, 3.5], "count": [2, 2]}
