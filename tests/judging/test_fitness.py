"""Verdicts on judges whose quality is known: the reference itself, noise around it, a constant."""

import math

import numpy as np
import pytest
import torch

from zr_ray.judging.fitness import fitness_table, quick_verdicts, reward_fitness, verdict
from zr_ray.report.fitness_page import fitness_page
from zr_ray.rubric import DIMENSIONS, SCORE_BINS

BINS = torch.tensor(SCORE_BINS, dtype=torch.float64)


def judged(reference, noise, spread=1.0, seed=1):
    """[P, S, D, K] log-distributions of width .3 around the reference plus noise, pulled together by `spread`."""
    noisy = reference + noise * torch.randn(reference.shape, generator=torch.Generator().manual_seed(seed))
    mean = (3 + spread * (noisy - 3)).clamp(1, 5)
    return (-((mean[..., None] - BINS) ** 2) / (2 * 0.3**2)).log_softmax(-1)


@pytest.fixture
def reference():
    return 1 + 4 * torch.rand(24, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_reference_itself_is_fit_and_gains_what_the_oracle_gains(reference):
    found = reward_fitness(reference, judged(reference, 0.0), resamples=200)
    for dimension in found.dimensions.values():
        assert dimension.verdict == "fit" and dimension.accuracy > 0.97 and dimension.correlation > 0.97
        assert dimension.interval[0] <= dimension.accuracy <= dimension.interval[1]
        assert dimension.spread == pytest.approx(dimension.reference_spread, rel=0.1)
    assert found.gain_share > 0.97 and set(found.best_of) == {1, 2, 4}
    assert found.best_of[1][0] == pytest.approx(found.best_of[1][1]) == pytest.approx(reference.sum(-1).mean().item())


def test_guessing_is_blind_and_so_is_a_judge_that_hardly_moves(reference):
    guess = reward_fitness(
        reference, judged(torch.rand(reference.shape, dtype=torch.float64) * 4 + 1, 0), resamples=200
    )
    assert {d.verdict for d in guess.dimensions.values()} == {"blind"} and abs(guess.gain_share) < 0.4
    flat = reward_fitness(reference, judged(reference, 0.0, spread=0.03), resamples=200)
    assert {d.verdict for d in flat.dimensions.values()} == {"blind"}
    assert all(d.accuracy > 0.9 for d in flat.dimensions.values())  # right order, no size


def test_a_noisy_judge_is_between_and_less_calibrated_when_too_sure(reference):
    honest = reward_fitness(reference, judged(reference, 1.2), resamples=200)
    assert all(0.6 < d.accuracy < 0.9 for d in honest.dimensions.values())
    sure = reward_fitness(reference, (10 * judged(reference, 1.2)).log_softmax(-1), resamples=200)
    for name in DIMENSIONS:
        assert sure.dimensions[name].calibration_error > honest.dimensions[name].calibration_error


@pytest.mark.parametrize(
    ("accuracy", "low", "spread", "wanted"),
    [
        (0.80, 0.76, 0.5, "fit"),
        (0.80, 0.76, 0.2, "weak"),
        (0.65, 0.61, 0.5, "weak"),
        (0.60, 0.54, 0.5, "blind"),
        (0.80, 0.76, 0.05, "blind"),
        (math.nan, math.nan, 0.5, "blind"),
    ],
)
def test_verdicts(accuracy, low, spread, wanted):
    assert verdict(accuracy, (low, accuracy + 0.04), spread) == wanted


def test_recognition_splits_pairs_and_probes_name_what_fools(reference):
    recognized = torch.ones(24, 6, dtype=torch.bool)
    recognized[:, 0] = False
    reference = torch.where(recognized[..., None], reference, 1.0)
    log_q = judged(reference, 0.0)
    log_q[:, 0] = log_q[:, 0].flip(-1)  # likes best what is not recognized
    probes = {"noise": dict.fromkeys(DIMENSIONS, (2.0, 1.0)), "grid": dict.fromkeys(DIMENSIONS, (3.2, 3.0))}
    found = reward_fitness(reference, log_q, recognized=recognized, probes=probes, resamples=100)
    for dimension in found.dimensions.values():
        assert dimension.recognized_against_not < 0.1 and dimension.both_recognized > 0.97
    assert found.fooled_by == ["noise"] and "noise" in fitness_table(found)
    assert found.as_dict()["dimensions"]["realism"]["verdict"] in ("weak", "blind")


def test_shapes_that_do_not_fit_are_refused(reference):
    with pytest.raises(ValueError, match=r"S >= 2"):
        reward_fitness(reference[:, :1], judged(reference, 0)[:, :1])


def test_quick_verdicts_agree_with_the_long_ones_and_leave_out_prompts_that_were_not_scored(reference):
    log_q = judged(reference, 1.2)
    mu = log_q.exp() @ BINS
    long = reward_fitness(reference, log_q, resamples=500)
    named = {name: reference[..., i] for i, name in enumerate(DIMENSIONS)}
    quick = quick_verdicts(named, {name: mu[..., i] for i, name in enumerate(DIMENSIONS)})
    for name, d in long.dimensions.items():
        assert quick[name][:3] == (d.verdict, d.accuracy, d.interval)
    first = DIMENSIONS[0]
    holed = mu[..., 0].clone()
    holed[3, 2] = math.nan
    left = quick_verdicts({first: reference[..., 0]}, {first: holed, "other": holed})
    assert set(left) == {first} and math.isfinite(left[first][1]) and left[first][1] != quick[first][1]


def test_a_verdict_from_a_few_pairs_is_unknown(reference):
    first = {DIMENSIONS[0]: reference[:3, :2, 0]}
    assert quick_verdicts(first, first)[DIMENSIONS[0]][0] == "unknown"


def test_a_prompt_with_an_image_without_a_score_is_left_out_of_that_dimension_and_counted(reference):
    log_q = judged(reference, 0.3)
    log_q[3, 2, 1] = math.nan  # the judge said nothing
    reference[7, 0, 2] = math.nan  # nobody did
    found = reward_fitness(reference, log_q, resamples=100)
    assert [d.prompts for d in found.dimensions.values()] == [24, 23, 23, 24] and found.prompts == 24
    others = [i for i in range(24) if i not in (3, 7)]
    alone = reward_fitness(reference[others], log_q[others], resamples=100)
    assert found.best_of == alone.best_of
    images = np.zeros((24, 6, 8, 8, 3), np.uint8)
    page = fitness_page(
        "t", found, images, [f"prompt {i}." for i in range(24)], log_q[..., 0].numpy(), reference.numpy()
    )
    assert "prompt 2." in page and "prompt 3." not in page and "prompt 7." not in page  # no image is best by nan
    rest = [i for i in range(24) if i != 3]
    assert (
        found.dimensions["realism"] == reward_fitness(reference[rest], log_q[rest], resamples=100).dimensions["realism"]
    )
    assert "realism: 23 of 24 prompts" in fitness_table(found) and "alignment: " not in fitness_table(found)


def test_a_dimension_that_nobody_scored_is_blind_not_an_error(reference):
    reference[..., 0] = math.nan
    found = reward_fitness(reference, judged(reference.nan_to_num(3.0), 0.3), resamples=100)
    assert found.dimensions["alignment"].verdict == "blind" and found.dimensions["alignment"].prompts == 0
    assert found.dimensions["realism"].verdict == "fit" and "alignment: 0 of 24" in fitness_table(found)
