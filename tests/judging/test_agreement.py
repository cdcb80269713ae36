"""The full row of an evaluation: each figure equals its metric called by hand; votes, malformed outputs, halves of
prompts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from zr_ray.functional import calibration, correlation, pairs, rank
from zr_ray.judging.agreement import annotator_votes, full_row
from zr_ray.judging.evaluate import Judged, human_scores
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, PAPER

BINS = torch.tensor(PAPER.bins, dtype=torch.float64)

PROMPTS, CANDIDATES, SAMPLES = 24, 3, 2


def items(seed=0):
    """72 items with five annotators each; plausibility is not annotated."""
    rng = np.random.default_rng(seed)
    made = []
    for prompt in range(PROMPTS):
        for n in range(CANDIDATES):
            truth = rng.uniform(1.5, 4.5)
            rated = {d: np.clip(np.round(2 * (truth + 0.5 * rng.normal(size=5))) / 2, 1, 5) for d in DIMENSIONS[:3]}
            votes = {d: tuple(given.tolist()) for d, given in rated.items()}
            made.append(AnnotatedImage(f"{prompt}-{n}", f"p{prompt:02d}", "test", "a cube", Path("/none.png"), votes))
    return made


def judged(made, seed=0):
    """A judge that knows the human score, with noise; 10 % of the mass is outside the labels; item 5 is malformed in
    alignment."""
    generator = torch.Generator().manual_seed(seed)
    human = human_scores(made, PAPER).nan_to_num(3.0)
    center = human[..., None] + 0.5 * torch.randn(*human.shape, SAMPLES, generator=generator, dtype=torch.float64)
    logits = -((BINS - center[..., None]) ** 2)
    labels = logits.log_softmax(-1) + math.log(0.9)
    labels[5, 0] = math.nan
    labels[7, 1, 1] = math.nan
    return Judged(labels, torch.full(labels.shape[:3], 12.0), PAPER)


@pytest.fixture(scope="module")
def case():
    made = items()
    answers = judged(made)
    return made, answers, full_row("test", answers, made, resamples=60, seed=0)


def test_every_figure_is_its_metric(case):
    made, answers, row = case
    group = torch.tensor([int(item.group[1:]) for item in made])
    human, votes = human_scores(made, PAPER), annotator_votes(made, PAPER)
    for d, name in list(enumerate(DIMENSIONS))[:3]:
        got, known = row["dimensions"][name], answers.mu[:, d].isfinite()
        x, y, q, v = answers.mu[known, d], human[known, d], answers.q[known, d], votes[known, d]
        assert got["srcc"] == pytest.approx(correlation.srcc(x, y)) and got["krcc"] == pytest.approx(
            correlation.krcc(x, y)
        )
        assert got["plcc_logistic"] == pytest.approx(correlation.logistic4_plcc(x, y))
        assert got["nll"] == pytest.approx(calibration.annotator_nll(q.log(), v).mean().item())
        assert got["crps"] == pytest.approx(calibration.crps(q, BINS, v).mean().item())
        assert got["outside_mass"] == pytest.approx(0.1) and got["voted"] == int(known.sum())
        a, b = pairs.pair_indices(group[known])
        gap = y[a] - y[b]
        outcome = torch.where(gap.abs() < 1e-6, 0.5, (gap > 0).double())
        p = rank.win_probability(q[a].log(), q[b].log())
        assert got["win_ece"] == pytest.approx(calibration.win_calibration_error(p, outcome), abs=1e-9)
        half = torch.randperm(PROMPTS, generator=torch.Generator().manual_seed(0))[: PROMPTS // 2]
        accuracy, threshold = pairs.tie_aware_accuracy(answers.mu[:, d], human[:, d], group, torch.isin(group, half))
        assert (got["tie_accuracy"], got["tie_threshold"]) == (pytest.approx(accuracy), pytest.approx(threshold))
        for key in ("hpa", "plcc", "srcc", "krcc", "nll", "crps", "entropy", "win_ece_votes", "tie_accuracy"):
            low, high = got[f"{key}_ci"]
            assert low < got[key] < high or key == "win_ece_votes", (
                key
            )  # a calibration error is biased upwards in resamples


def test_pooled_pairs_stay_inside_a_dimension(case):
    made, answers, row = case
    dimensions = row["dimensions"].values()
    assert "plausibility" not in row["dimensions"]
    assert row["pooled"]["pairs"] == sum(d["pairs"] for d in dimensions) and row["pooled"]["voted"] == sum(
        d["voted"] for d in dimensions
    )
    expected = sum(d["nll"] * d["voted"] for d in dimensions) / row["pooled"]["voted"]
    assert row["pooled"]["nll"] == pytest.approx(expected)


def test_malformed_outputs_are_counted_and_left_out(case):
    made, answers, row = case
    assert row["malformed_frac"] == pytest.approx(3 / (len(made) * 4 * SAMPLES))
    assert row["dimensions"]["alignment"]["items"] == len(made) - 1 and row["dimensions"]["realism"]["items"] == len(
        made
    )
    one_sample = answers.q[7, 1]
    torch.testing.assert_close(one_sample, answers.label_logprobs[7, 1, 0].softmax(-1))


def test_prefixes_are_the_scaling_curve(case):
    made, answers, _ = case
    assert answers.first(2).mu.nansum() == answers.mu.nansum() and answers.first(1).samples == 1
    torch.testing.assert_close(answers.first(1).q[3, 0], answers.label_logprobs[3, 0, 0].softmax(-1))
    assert answers.first(1).tokens[0, 0] == 12 and answers.tokens[0, 0] == 24
    singles = correlation.plcc(answers.first(1).mu[10:, 0], human_scores(made, PAPER)[10:, 0])
    assert (
        correlation.plcc(answers.mu[10:, 0], human_scores(made, PAPER)[10:, 0]) > singles
    )  # two noisy answers are better than one


def test_votes_on_bins_only():
    made = [
        AnnotatedImage("a", "g", "test", "p", Path("/x"), {"realism": (1.0, 1.0, 5.0), "alignment": 3.3}),
        AnnotatedImage("b", "g", "test", "p", Path("/x"), {"realism": 4.5}),
    ]
    votes = annotator_votes(made, PAPER)
    assert votes[0, 1].tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 1] and votes[0, 0].sum() == 0 and votes[1, 1, 7] == 1


def test_calibrated_judge_has_a_small_error_against_votes():
    """q = the distribution that single votes are drawn from: P(a beats b) is right for votes and too careful for their
    mean."""
    rng = np.random.default_rng(1)
    made, q = [], []
    for prompt in range(400):
        for n in range(2):
            p = np.exp(-((BINS.numpy() - rng.uniform(2, 4)) ** 2) / 0.5)
            p /= p.sum()
            votes = tuple(float(v) for v in rng.choice(BINS.numpy(), 5, p=p))
            made.append(AnnotatedImage(f"{prompt}-{n}", f"p{prompt:03d}", "test", "x", Path("/x"), {"realism": votes}))
            q.append(p)
    labels = torch.from_numpy(np.stack(q)).log()[:, None, None].expand(-1, 4, 1, -1)
    row = full_row("true", Judged(labels, torch.ones(800, 4, 1), PAPER), made, resamples=20, seed=0)["dimensions"][
        "realism"
    ]
    assert row["win_ece_votes"] < 0.03 < 0.08 < row["win_ece"]
