"""Is this judge fit to reward this generator? Figures from images of the generator, several to a prompt, against
reference scores.

A reward can only teach differences between images of one prompt; agreement over a mixed set says little about them. The
reference is the world's verifier, or annotators' scores of images that the generator made.
Axes: P prompts, S images of each, D dimensions in the rubric's order, K score bins.
Left out on purpose: what the judge says about single images; `jobs/evaluate.py` measures that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from zr_ray.functional.calibration import win_calibration_error
from zr_ray.functional.intervals import ratio_interval
from zr_ray.functional.rank import win_probability
from zr_ray.functional.scores import expected_score
from zr_ray.functional.within_prompt import NOISE_GAP, best_of, pair_outcomes, spread, within_correlation
from zr_ray.rubric import PAPER, Rubric

COARSE_GAP = 0.25
"""Rubric points; aesthetics differences below it are mostly the verifier's own noise, so pairs above it are shown
apart."""
BEST_OF = (1, 2, 4, 8)
FIT_ACCURACY, FIT_SPREAD = 0.70, 0.25
"""A dimension is fit from this pair accuracy, and from this spread of mu against the reference's: rewards of .70 to .82
improved the built-in generator in all four dimensions, rewards of .54 to .66 destroyed its images."""
BLIND_ACCURACY, BLIND_SPREAD = 0.55, 0.10
"""A dimension is blind when the interval of its accuracy reaches down to this, or when mu hardly moves inside a
prompt."""
PROBE_ALLOWANCE = 0.3
"""Rubric points by which a judge may like noise, blobs or stripes more than the reference does."""


@dataclass(frozen=True)
class DimensionFitness:
    """One dimension of a judge on one generator."""

    pairs: int
    """Same-prompt pairs whose reference differs by more than NOISE_GAP."""
    accuracy: float
    """Share of them that mu orders alike; a tie in mu is wrong, chance is .5."""
    interval: tuple[float, float]
    """95 % bootstrap over prompts."""
    coarse_accuracy: float
    """Over pairs that differ by more than COARSE_GAP."""
    recognized_against_not: float
    """Over pairs of which the reference recognizes an object in one image only; nan when it does not say."""
    both_recognized: float
    correlation: float
    """Pearson, inside prompts."""
    spread: float
    """Of mu inside a prompt, rubric points."""
    reference_spread: float
    calibration_error: float
    """Of P(a beats b) inside prompts, in [0, 1]; nan without distributions."""
    verdict: str
    """"fit", "weak" or "blind"."""
    prompts: int
    """Prompts that were measured; one with an image that judge or reference did not score is left out."""


@dataclass(frozen=True)
class Fitness:
    """All dimensions, and what choosing by the sum of the four rewards gains."""

    prompts: int
    images: int
    dimensions: dict[str, DimensionFitness]
    best_of: dict[int, tuple[float, float]]
    """n -> mean reference, summed over dimensions, of the best of n images by the judge, and by the reference
    itself."""
    probes: dict[str, dict[str, tuple[float, float]]]
    """Probe picture -> dimension -> (judge, reference), mean scores."""

    @property
    def fooled_by(self) -> list[str]:
        """Probes that the judge likes by more than PROBE_ALLOWANCE above the reference, on the mean of the
        dimensions."""
        mean = {
            name: [sum(v[i] for v in rows.values()) / len(rows) for i in (0, 1)] for name, rows in self.probes.items()
        }
        return [name for name, (judge, reference) in mean.items() if judge > reference + PROBE_ALLOWANCE]

    @property
    def gain_share(self) -> float:
        """Gain of best-of-n over one image as a share of the oracle's, at the largest n."""
        n = max(self.best_of)
        base = self.best_of[1][1]
        return (self.best_of[n][0] - base) / (self.best_of[n][1] - base)

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self) | {"fooled_by": self.fooled_by, "gain_share": self.gain_share}


def verdict(accuracy: float, interval: tuple[float, float], spread_ratio: float) -> str:
    """ "blind": no better than guessing, or mu hardly moves; "fit": good enough to train on; else "weak". nan is
    blind."""
    low = interval[0] if not math.isnan(interval[0]) else accuracy
    if not (low > BLIND_ACCURACY and spread_ratio >= BLIND_SPREAD):
        return "blind"
    return "fit" if accuracy >= FIT_ACCURACY and spread_ratio >= FIT_SPREAD else "weak"


ENOUGH_PAIRS = 50
"""Pairs from which a verdict is given; with fewer, one verdict in ten would be chance."""


def quick_verdicts(
    reference: Mapping[str, Tensor], mu: Mapping[str, Tensor], resamples: int = 500, seed: int = 0
) -> dict[str, tuple[str, float, tuple[float, float], float]]:
    """Verdicts without distributions, from images that are there anyway: what text-to-image training says at its start.

    Args: reference, mu: dimension -> [P, S], rubric points; dimensions that only one of them has are left out.
    Returns: dimension -> (verdict or "unknown" below ENOUGH_PAIRS pairs, pair accuracy, 95 % interval over prompts,
    spread of mu inside a prompt over the reference's)."""
    found = {}
    for name in (name for name in mu if name in reference):
        known = (reference[name].isfinite() & mu[name].isfinite()).all(1)  # a prompt with an unscored image is left out
        wanted, own = reference[name][known].double()[..., None], mu[name][known].double()[..., None]
        right, pairs = pair_outcomes(wanted, own)
        accuracy, ratio = _ratio(right.sum(), pairs.sum()), _ratio(spread(own)[0], spread(wanted)[0])
        if int(pairs.sum()) < ENOUGH_PAIRS:
            found[name] = ("unknown", accuracy, (math.nan, math.nan), ratio)
            continue
        interval = ratio_interval(right[:, 0], pairs[:, 0], resamples, seed)
        found[name] = (verdict(accuracy, interval, ratio), accuracy, interval, ratio)
    return found


def reward_fitness(
    reference: Tensor,
    log_q: Tensor,
    *,
    rubric: Rubric = PAPER,
    recognized: Tensor | None = None,
    resamples: int = 2000,
    seed: int = 0,
    probes: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Fitness:
    """Measure a judge's distributions against reference scores.

    Args: rubric: the judge's. reference: [P, S, D] rubric points, nan where there is none. log_q: [P, S, D, K] nats,
    nan where the judge gave no score. A prompt is left out of a dimension in which one of its images has no score.
    recognized: [P, S] whether the reference sees any object. resamples, seed: of the bootstrap over prompts.
    Raises: ValueError if shapes differ or S is below 2."""
    if log_q.shape[:3] != reference.shape or reference.shape[1] < 2 or reference.shape[2] != len(rubric.dimensions):
        raise ValueError(
            f"wanted [P, S >= 2, {len(rubric.dimensions)}] scores and [.., K] distributions,"
            f" got {list(reference.shape)}, {list(log_q.shape)}"
        )
    log_q = log_q.double()
    mu = expected_score(log_q, torch.tensor(rubric.bins, dtype=torch.float64))
    reference = reference.double()
    known = (reference.isfinite() & mu.isfinite()).all(1)  # [P, D]
    found = {}
    for i, name in enumerate(rubric.dimensions):
        kept = known[:, i]
        seen = None if recognized is None else recognized[kept]
        found[name] = _dimension(reference[kept][..., i], mu[kept][..., i], log_q[kept][:, :, i], seen, resamples, seed)
    whole = known.all(1)
    total, reward = reference[whole].sum(-1), mu[whole].sum(-1)
    curve = {
        n: (float(best_of(reward, total, n).mean()), float(best_of(total, total, n).mean()))
        for n in BEST_OF
        if n <= reference.shape[1]
    }
    return Fitness(
        reference.shape[0], reference.shape[1], found, curve, {k: dict(v) for k, v in (probes or {}).items()}
    )


def _dimension(
    reference: Tensor, mu: Tensor, log_q: Tensor, recognized: Tensor | None, resamples: int, seed: int
) -> DimensionFitness:
    """[P, S], [P, S], [P, S, K], [P, S]: prompts that are scored throughout."""
    wanted, own = reference[..., None], mu[..., None]
    right, pairs = pair_outcomes(wanted, own)
    coarse_right, coarse_pairs = pair_outcomes(wanted, own, COARSE_GAP)
    accuracy = _ratio(right.sum(), pairs.sum())
    interval = ratio_interval(right[:, 0], pairs[:, 0], resamples, seed)
    own_spread, wanted_spread = spread(own)[0], spread(wanted)[0]
    ratio = _ratio(own_spread, wanted_spread)
    return DimensionFitness(
        int(pairs.sum()),
        accuracy,
        interval,
        _ratio(coarse_right.sum(), coarse_pairs.sum()),
        *_by_recognition(reference, mu, recognized),
        float(within_correlation(wanted, own)[0]),
        float(own_spread),
        float(wanted_spread),
        _calibration(reference, log_q),
        verdict(accuracy, interval, ratio),
        len(reference),
    )


def _by_recognition(reference: Tensor, mu: Tensor, recognized: Tensor | None) -> tuple[float, float]:
    """The accuracy over pairs with one recognized image, and over pairs with two. All [P, S]."""
    if recognized is None:
        return math.nan, math.nan
    first, second = torch.triu_indices(reference.shape[1], reference.shape[1], offset=1)
    wanted, got = reference[:, first] - reference[:, second], mu[:, first] - mu[:, second]
    counted, right = wanted.abs() > NOISE_GAP, wanted * got > 0
    one, both = recognized[:, first] != recognized[:, second], recognized[:, first] & recognized[:, second]
    one, both = (_ratio((right & counted)[kind].sum(), counted[kind].sum()) for kind in (one, both))
    return one, both


def _calibration(reference: Tensor, log_q: Tensor) -> float:
    """Calibration error of P(a beats b) over same-prompt pairs; a reference difference within NOISE_GAP counts as a
    tie. [P, S], [P, S, K]."""
    first, second = torch.triu_indices(reference.shape[1], reference.shape[1], offset=1)
    gap = (reference[:, first] - reference[:, second]).flatten()
    outcome = torch.where(gap.abs() <= NOISE_GAP, 0.5, (gap > 0).double())
    chance = win_probability(log_q[:, first].flatten(0, 1), log_q[:, second].flatten(0, 1))
    return win_calibration_error(chance.clamp(0, 1), outcome)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) else math.nan


def fitness_table(fitness: Fitness) -> str:
    """Plain text: a line per dimension, the best-of-n curve, and the probes that fool the judge."""
    titles = f"verdict  pairs right  95 % interval   above {COARSE_GAP}  one recog.  both  correl.  spread (reference)"
    lines = [f"{'':<13} {titles}  calibration"]
    for name, d in fitness.dimensions.items():
        lines.append(
            f"{name:<13} {d.verdict:<7} {d.accuracy:>12.3f}  {d.interval[0]:.3f} .. {d.interval[1]:.3f}"
            f" {d.coarse_accuracy:>10.3f} {d.recognized_against_not:>11.3f} {d.both_recognized:>6.3f}"
            f" {d.correlation:>7.3f} {d.spread:>7.2f} ({d.reference_spread:.2f}) {d.calibration_error:>14.3f}"
        )
    curve = "  ".join(f"{n}: {judge:.2f} ({oracle:.2f})" for n, (judge, oracle) in fitness.best_of.items())
    lines.append(
        f"best of n by the judge (by the reference), sum of dimensions  {curve}  share of the gain"
        f" {fitness.gain_share:.2f}"
    )
    for name, d in fitness.dimensions.items():
        if d.prompts < fitness.prompts:
            lines.append(f"{name}: {d.prompts} of {fitness.prompts} prompts; the others have an image without a score")
    if fitness.probes:
        lines.append(f"liked more than the reference likes them: {', '.join(fitness.fooled_by) or 'no probe'}")
    return "\n".join(lines)
