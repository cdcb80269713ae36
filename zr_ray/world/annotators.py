"""SIMULATED annotators of the rubric world, their spread fitted to real ratings.

A rating is truth + rater bias + noise, rounded to a half-point and clipped to [1, 5]. `jobs/data/fit_annotators.py`
fitted exactly this model, on each data set's own grid, by maximum likelihood (2026-11; scales mapped linearly to 1..5).
It reproduces the pooled within-item SD of the ratings to within 0.011 points:

    data set (public ratings, no images)            items   raters   sigma   bias SD    within-item SD data / model
    DSG-1k on TIFA160, alignment 1..5                 800        5   0.564     0.165    0.581 / 0.585
    KonIQ-10k, technical quality 1..5               10073     ~100   0.502   (inside)   0.578 / 0.579
    AVA test, aesthetics 1..10                      25551     ~200   0.645   (inside)   0.644 / 0.655
    ImagenHub, semantic consistency, 3 levels         985        3   0.672     0.163    0.787 / 0.789
    ImagenHub, perceptual quality, 3 levels           985        3   0.574     0.294    0.772 / 0.775
    GenEval, realism of one object, 3 levels         1086        5   1.356   (inside)   0.972 / 0.978

Alignment takes DSG, realism KonIQ, aesthetics AVA, plausibility ImagenHub's perceptual quality (its guideline asks for
wrong shadow, lighting and distance). KonIQ and AVA name no raters, so the root mean square of the three known bias SDs,
0.217, is taken out of their sigma. GenEval is left out: crowd votes on three levels, no rater identity, and an outlier
by a factor of two. What is not from data: rater bias is one number per dimension, noise does not depend on the score,
and the comparison and quality control of training labels (constants below) follow the paper's description, which gives
no numbers.

Noise ceiling measured with them (a judge that knows the true score, 1,500 groups of 4): HPA alignment .929, realism
.948, aesthetics .920, plausibility .933, mean .932; margin HPA .991; PLCC .960. Training labels lie .45 to .54 points
(RMS) from the truth, 92 % of same-prompt pairs are untied, 91 % of those point the right way, and 0.05 % of labels are
dropped.
"""

from __future__ import annotations

import math

import numpy as np

from zr_ray.data.pairs import aggregate_scores
from zr_ray.rubric import DIMENSIONS

NOISE_SD = {"alignment": 0.564, "realism": 0.453, "aesthetics": 0.607, "plausibility": 0.574}
"""SD of one rating's noise, rubric points (fitted, see above)."""
BIAS_SD = {"alignment": 0.165, "realism": 0.217, "aesthetics": 0.217, "plausibility": 0.294}
"""SD over raters of a rater's bias, rubric points (fitted, see above)."""
TEST_RATERS = 5
"""Annotators per test item (method section 2)."""
POOL = 24
"""Raters in the pool; each group's items are rated by the same TEST_RATERS of them."""
COMPARISON_SD = 0.3
"""Noise of one item in a side-by-side comparison, rubric points: about half of pointwise noise, as the rater sees both.
Ours."""
DISTINGUISHABLE = 0.5
"""Perceived difference, rubric points, from which two items in one bin are moved apart: one half-point. Ours."""
DISAGREEMENT = 1.0
"""Rubric points by which a check rating may differ before an item is done again. Ours."""


def round_half(score: float) -> float:
    """Nearest bin of S: half-points, clipped to [1, 5]."""
    return min(5.0, max(1.0, math.floor(2 * score + 0.5) / 2))


class AnnotatorPool:
    """POOL simulated raters with fixed biases, drawn from `seed`."""

    def __init__(self, seed: int) -> None:
        draws = np.random.default_rng((seed, 0xA770)).standard_normal((len(DIMENSIONS), POOL))
        self.biases = {d: [BIAS_SD[d] * x for x in row] for d, row in zip(DIMENSIONS, draws.tolist(), strict=True)}
        """Dimension -> POOL biases, rubric points."""

    def rate(self, rng: np.random.Generator, dimension: str, truth: float, rater: int) -> float:
        """One rater's half-point score of an item whose true score is `truth`."""
        return round_half(truth + self.biases[dimension][rater] + NOISE_SD[dimension] * rng.standard_normal())

    def test_scores(
        self, rng: np.random.Generator, truths: list[dict[str, float]]
    ) -> list[dict[str, tuple[float, ...]]]:
        """All five annotators' scores of every item of a group. truths: per item, dimension -> true score."""
        raters = rng.permutation(POOL)[:TEST_RATERS].tolist()
        return [
            {d: tuple(self.rate(rng, d, item[d], rater) for rater in raters) for d in DIMENSIONS} for item in truths
        ]

    def training_scores(self, rng: np.random.Generator, truths: list[dict[str, float]]) -> list[dict[str, float]]:
        """One label per item and dimension from the annotation workflow (method section 2); a dropped label is
        absent."""
        labels: list[dict[str, float]] = [{} for _ in truths]
        raters = rng.permutation(POOL)[:3].tolist()
        for dimension in DIMENSIONS:
            column = [item[dimension] for item in truths]
            pointwise = [self.rate(rng, dimension, truth, raters[0]) for truth in column]
            compared = compare_in_bins(pointwise, [truth + COMPARISON_SD * rng.standard_normal() for truth in column])
            for label, truth, score in zip(labels, column, compared, strict=True):
                checked = control(score, lambda rater, t=truth, d=dimension: self.rate(rng, d, t, raters[rater]))
                if checked is not None:
                    label[dimension] = checked
        return labels


def compare_in_bins(scores: list[float], perceived: list[float]) -> list[float]:
    """Same-prompt comparison: equal scores whose items are distinguishable side by side move apart by half a point.

    scores: pointwise half-point scores of one group. perceived: side-by-side quality of the same items. Items with one
    score form a tie; if the best and the worst of a tie are at least DISTINGUISHABLE apart, those on one side of the
    middle move by half a point:
    up from an integer k to k + 0.5, down from k + 0.5 to k, and down from 5. So no item leaves its integer bin [k, k +
    1), except that 5 shares the bin of 4.5.
    """
    moved = list(scores)
    for score in set(scores):
        tie = [i for i, s in enumerate(scores) if s == score]
        low, high = min(perceived[i] for i in tie), max(perceived[i] for i in tie)
        if high - low < DISTINGUISHABLE:
            continue
        upward = score == int(score) and score < 5
        for i in tie:
            if upward == (perceived[i] > (low + high) / 2):
                moved[i] = score + (0.5 if upward else -0.5)
    return moved


def control(score: float, rate_again) -> float | None:
    """Quality control: keep a label that a second rater confirms, else do it again, else drop it.

    `rate_again(rater)` is a fresh pointwise score by rater 1 (the checker) or 2 (the arbiter). Returns: the label; the
    median of the three scores when the checker is more than DISAGREEMENT away; None when the arbiter agrees with
    neither.
    """
    check = rate_again(1)
    if abs(check - score) <= DISAGREEMENT:
        return score
    arbiter = rate_again(2)
    if min(abs(arbiter - score), abs(arbiter - check)) > DISAGREEMENT:
        return None
    return aggregate_scores((score, check, arbiter))
