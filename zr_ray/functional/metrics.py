"""The door to every evaluation metric. The maths lives in correlation, pairs, calibration and intervals."""

from zr_ray.functional.calibration import annotator_nll, crps, reliability_curve, vote_counts, win_calibration_error
from zr_ray.functional.correlation import average_ranks, krcc, logistic4_plcc, plcc, srcc, why_undefined
from zr_ray.functional.intervals import (
    bootstrap_interval,
    paired_ratio_difference_interval,
    plcc_interval,
    ratio_interval,
    srcc_interval,
)
from zr_ray.functional.pairs import (
    hpa_by_group,
    human_pair_accuracy,
    pair_accuracy_with_ties,
    pair_indices,
    tie_aware_accuracy,
    tie_threshold,
)

__all__ = [
    "annotator_nll",
    "average_ranks",
    "bootstrap_interval",
    "crps",
    "hpa_by_group",
    "human_pair_accuracy",
    "krcc",
    "logistic4_plcc",
    "pair_accuracy_with_ties",
    "pair_indices",
    "paired_ratio_difference_interval",
    "plcc",
    "plcc_interval",
    "ratio_interval",
    "reliability_curve",
    "srcc",
    "srcc_interval",
    "tie_aware_accuracy",
    "tie_threshold",
    "vote_counts",
    "why_undefined",
    "win_calibration_error",
]
