"""Student, teacher and a reference on the same images: who orders the images of a prompt like whom, and who is kinder.

The reference is the true scores (the verifier's) where the data has them, else the annotators'. Three pairs of judges
answer two questions: does the student still say what its teacher says (if not: distil it again), and is the teacher
itself right about these images (if not, distilling again teaches a mistake).
Axes: I items, D dimensions. Left out on purpose: distances of distributions; `functional/disagreement.py` has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.functional.intervals import defined, defined_interval, ratio_interval
from zr_ray.functional.pairs import hpa_by_group
from zr_ray.functional.within_prompt import NOISE_GAP
from zr_ray.judging.evaluate import human_scores, pooled_groups, prompt_index
from zr_ray.judging.fitness import ENOUGH_PAIRS
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric

COMPARED = (("student", "teacher"), ("student", "reference"), ("teacher", "reference"))
"""(judge, whose order it is held against)."""


def reference_scores(items: Sequence[AnnotatedImage], rubric: Rubric) -> Tensor:
    """[I, D] float64 rubric points: the true score of an item, where it has none the annotators', else nan."""
    human = human_scores(items, rubric).double()
    truth = torch.tensor(
        [[item.truth.get(d, float("nan")) for d in rubric.dimensions] for item in items], dtype=torch.float64
    ).view(len(items), len(rubric.dimensions))
    return torch.where(truth.isnan(), human, truth)


def pair_order(mu: Tensor, held_against: Tensor, items: Sequence[AnnotatedImage]) -> tuple[Tensor, Tensor]:
    """Same-prompt pairs of all dimensions: those that mu orders alike and all that differ by more than NOISE_GAP.

    A tie in mu is wrong, as is a pair that it gave no score.   Args: mu, held_against: [I, D], nan = none.
    Returns: (right [P], pairs [P]) float64, per prompt."""
    inside, every = pooled_groups(prompt_index([item.group for item in items]), mu.shape[1])
    return hpa_by_group(mu.flatten(), held_against.flatten(), inside, NOISE_GAP, every)


def three_way(
    student: Tensor,
    teacher: Tensor,
    items: Sequence[AnnotatedImage],
    rubric: Rubric,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """{"pooled": entry, "dimensions": {d: entry}}; an entry has for each of COMPARED, as "<one>/<other>",

        accuracy, ci   share of same-prompt pairs ordered alike, 95 % over prompts     pairs   how many
        bias           mean (mu one - mu other), rubric points

    Undefined values are None: without a reference the last two comparisons have no pairs.
    Args: student, teacher: [I, D] mu, nan = none."""
    scores = {"student": student.double(), "teacher": teacher.double(), "reference": reference_scores(items, rubric)}

    def entry(columns: slice) -> dict:
        found = {}
        for one, other in COMPARED:
            a, b = scores[one][:, columns], scores[other][:, columns]
            right, pairs = pair_order(a, b, items)
            found[f"{one}/{other}"] = {
                "accuracy": defined(right.sum() / pairs.sum()),
                "ci": defined_interval(ratio_interval(right, pairs, resamples, seed)),
                "pairs": int(pairs.sum()),
                "bias": defined((a - b)[(a - b).isfinite()].mean()),
            }
        return found

    each = {name: entry(slice(d, d + 1)) for d, name in enumerate(rubric.dimensions)}
    return {"pooled": entry(slice(None)), "dimensions": each}


def drifted(found: dict, limit: float, enough: int = ENOUGH_PAIRS) -> tuple[list[str], list[str]]:
    """(reasons to distil again, reasons that distilling cannot help), in words, by dimension.

    Args: found: of `three_way`. limit: smallest accuracy. enough: pairs below which nothing is said, as with chance."""
    again, useless = [], []
    for name, entry in found["dimensions"].items():
        taught, right = entry["student/teacher"], entry["teacher/reference"]
        if taught["pairs"] >= enough and taught["accuracy"] < limit:
            again.append(
                f"{name}: the student orders {taught['accuracy']:.0%} of {taught['pairs']} same-prompt pairs as its"
                f" teacher does, limit {limit:.0%}"
            )
        if right["pairs"] >= enough and right["accuracy"] < limit:
            useless.append(
                f"{name}: the teacher itself orders {right['accuracy']:.0%} of {right['pairs']} same-prompt pairs as"
                f" the reference does, limit {limit:.0%}; train it on such images first (jobs/gdso.py)"
            )
    return again, useless
