"""Copies a data set with its training labels on the anchors of the scale alone: labels without half-points
(the paper's: five levels).

A label drops to its rubric anchor, the integer below it. That is the annotation workflow without its half-point
comparison: the paper compares items inside one integer bin [k, k + 1) and moves distinguishable ones by half a point
(method section 2). Rounding down keeps the order, so no preference is invented; pairs inside one bin tie and are no
pairs any more. The shift of the mean by up to half a point is the same for every judge trained on it and changes
neither HPA nor correlations by itself. Test and dev items keep every annotator's score: the question is what a judge
learns from five levels, not how it is graded.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from zr_ray.data.annotations import read_annotations
from zr_ray.data.copies import copy_changed
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage


def write_anchor_labels(source: Path, target: Path) -> int:
    """Copy a data set with the training labels rounded down to integers; images are hard links where the file system
    allows.

    Returns: the number of labels that changed. Does nothing but count if the target is already complete.
    Raises: DataError if the source breaks the format, or its scale has bins without an anchor below."""
    source, target = Path(source).absolute(), Path(target).absolute()
    rubric, items = read_rubric(source), list(read_annotations(source))
    off = sorted({math.floor(s) for s in rubric.bins} - set(rubric.bins))
    if off:
        raise DataError(
            f"{source}: wanted a scale whose bins drop to integer bins, {off[0]} is none ({rubric.scale_text()}); leave"
            " the rows with `anchors` out"
        )
    changed = sum(
        score != math.floor(score) for item in items if item.split == "train" for score in item.scores.values()
    )

    def dropped(item: AnnotatedImage) -> AnnotatedImage:
        return replace(item, scores={d: float(math.floor(s)) for d, s in item.scores.items()})

    copy_changed(source, target, dropped)
    return changed
