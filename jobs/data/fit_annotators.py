"""How much do real raters disagree? Fits the constants of the rubric world's SIMULATED annotators to real rating
statistics.

    python jobs/data/fit_annotators.py FOLDER

FOLDER holds the public rating tables named in TABLES (ratings without images; they are not part of this package).
Model, per data set:
a rating is round(t + b_r + sigma e), clipped to the scale, with t the item's true score, b_r the rater's bias, e
standard normal, and round to the data set's own grid. Scales are mapped linearly to 1..5. The distribution of t is free
(41 grid points, EM); sigma and b_r maximize the likelihood. Without rater identities b_r is absent and sigma holds bias
and noise together. Prints one line per data set, with the pooled within-item SD that the fitted model predicts next to
the one in the data. The numbers chosen from it stand in `zr_ray/world/annotators.py`.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

TABLES = {
    "dsg_tifa160_likert.csv": "alignment, 5 raters, 1..5",
    "imagenhub_t2i_raters.csv": "semantic consistency and perceptual quality, 3 raters, {0, .5, 1}",
    "geneval_annotations.csv": "realism of the first object, 5 raters without identity, 1..3",
    "koniq10k_distributions_sets.csv": "technical quality of photos, about 100 raters without identity, 1..5",
    "ava_test_histograms.csv": "aesthetics of photos, about 200 raters without identity, 1..10",
}
TRUTHS = np.linspace(1, 5, 41)
_erf = np.vectorize(math.erf, otypes=[float])


def category_probabilities(sigma: float, bias: float, categories: int) -> np.ndarray:
    """[T, C] probability of each category of a `categories`-point scale for each true score in TRUTHS."""
    values = np.linspace(1, 5, categories)
    edges = np.concatenate(([-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]))
    cumulative = 0.5 * (1 + _erf((edges[None] - TRUTHS[:, None] - bias) / (sigma * math.sqrt(2))))
    return np.maximum(np.diff(cumulative, axis=1), 1e-12)


def marginal_loglikelihood(
    counts: np.ndarray, sigma: float, biases: np.ndarray, rounds: int = 30
) -> tuple[float, np.ndarray]:
    """Log-likelihood after EM over the distribution of true scores. counts: [N, R, C], votes per item, rater and
    category."""
    per_truth = sum(
        counts[:, r] @ np.log(category_probabilities(sigma, b, counts.shape[2])).T for r, b in enumerate(biases)
    )
    top = per_truth.max(1, keepdims=True)
    likelihood = np.exp(per_truth - top)
    prior = np.full(len(TRUTHS), 1 / len(TRUTHS))
    for _ in range(rounds):
        posterior = likelihood * prior
        prior = (posterior / posterior.sum(1, keepdims=True)).mean(0)
    return float((np.log(likelihood @ prior) + top[:, 0]).sum()), prior


def _best(function, low: float, high: float, steps: int = 14) -> float:
    """Golden-section maximum of a unimodal function."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    value_a, value_b = function(a), function(b)
    for _ in range(steps):
        if value_a > value_b:
            high, b, value_b = b, a, value_a
            a = high - ratio * (high - low)
            value_a = function(a)
        else:
            low, a, value_a = a, b, value_b
            b = low + ratio * (high - low)
            value_b = function(b)
    return (low + high) / 2


def fit(counts: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(sigma, biases [R], prior [T]) of maximum likelihood; coordinate ascent, biases summing to zero."""
    biases, sigma = np.zeros(counts.shape[1]), 0.6
    for _ in range(3 if len(biases) > 1 else 1):
        sigma = _best(lambda s: marginal_loglikelihood(counts, s, biases)[0], 0.15, 1.5)
        for r in range(len(biases) if len(biases) > 1 else 0):
            biases[r] = _best(
                lambda b, r=r: marginal_loglikelihood(counts, sigma, np.r_[biases[:r], b, biases[r + 1 :]])[0],
                -0.8,
                0.8,
            )
        biases -= biases.mean()
    return sigma, biases, marginal_loglikelihood(counts, sigma, biases)[1]


def within_sd(counts: np.ndarray) -> float:
    """Pooled SD of the ratings of one item, rubric points."""
    votes = counts.sum(1)
    values = np.linspace(1, 5, votes.shape[1])
    total = votes.sum(1)
    mean = votes @ values / total
    return float(np.sqrt((((votes @ values**2) / total - mean**2) * total / (total - 1)).mean()))


def predicted_within_sd(counts: np.ndarray, sigma: float, biases: np.ndarray, prior: np.ndarray) -> float:
    """Pooled SD of the ratings of one item under the fitted model, rubric points; rater biases count as spread, as they
    do in the data."""
    values = np.linspace(1, 5, counts.shape[2])
    probabilities = np.stack([category_probabilities(sigma, b, counts.shape[2]) for b in biases])  # [R, T, C]
    means = probabilities @ values
    variance = (probabilities @ values**2 - means**2).mean(0)
    if len(biases) > 1:
        variance = variance + means.var(0, ddof=1)
    return float(np.sqrt(variance @ prior))


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def _by_rater(rows, item, rater, value, to_index, categories: int) -> np.ndarray:
    """[N, R, C] votes. Rows without a value are skipped, items need at least two ratings."""
    votes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        if row[value].strip() not in ("", "nan"):
            votes[item(row)].append((rater(row), to_index(float(row[value]))))
    names = sorted({name for given in votes.values() for name, _ in given})
    counts = np.zeros((len(votes), len(names), categories))
    for n, given in enumerate(votes.values()):
        for name, index in given:
            counts[n, names.index(name), index] += 1
    return counts[counts.sum((1, 2)) >= 2]


def data_sets(folder: Path) -> dict[str, np.ndarray]:
    """Name -> [N, R, C] votes."""
    hub = _rows(folder, "imagenhub_t2i_raters.csv")
    koniq, ava = _rows(folder, "koniq10k_distributions_sets.csv"), _rows(folder, "ava_test_histograms.csv")
    koniq_votes = np.array([[float(r[f"c{k}"]) * float(r["c_total"]) for k in range(1, 6)] for r in koniq])[:, None]
    ava_votes = np.array([[float(r[f"n{k}"]) for k in range(1, 11)] for r in ava])[:, None]
    sets = {
        "dsg alignment": _by_rater(
            _rows(folder, "dsg_tifa160_likert.csv"),
            lambda r: r["image"],
            lambda r: r["rater"],
            "alignment",
            lambda v: int(v) - 1,
            5,
        ),
        "koniq technical quality": koniq_votes,
        "ava aesthetics": ava_votes,
        "geneval object realism": _by_rater(
            _rows(folder, "geneval_annotations.csv"),
            lambda r: r["model"] + r["image"],
            lambda r: "any",
            "real-0",
            lambda v: int(v) - 1,
            3,
        ),
    }
    for column in ("semantic_consistency", "perceptual_quality"):
        sets[f"imagenhub {column}"] = _by_rater(
            hub, lambda r: r["model"] + r["uid"], lambda r: r["rater"], column, lambda v: int(2 * v), 3
        )
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the tables: " + ", ".join(TABLES))
    folder = parser.parse_args().folder
    missing = [name for name in TABLES if not (folder / name).is_file()]
    if missing:
        raise SystemExit(
            f"fit_annotators: {folder} lacks {', '.join(missing)}; give the folder that holds the rating tables"
        )
    for name, counts in data_sets(folder).items():
        sigma, biases, prior = fit(counts)
        spread = f"{biases.std(ddof=1):.3f}" if len(biases) > 1 else "in sigma"
        print(
            f"{name:32s} {len(counts):6d} items  sigma {sigma:.3f}  rater bias SD {spread:>8s}  within-item SD: data "
            f"{within_sd(counts):.3f}, model {predicted_within_sd(counts, sigma, biases, prior):.3f}"
        )


if __name__ == "__main__":
    main()
