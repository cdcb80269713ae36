"""One split of an annotated data set, checked."""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.annotations import read_annotations
from zr_ray.data.rubrics import read_rubric
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER, Rubric, require_rubric


def load_split(folder: Path, split: str) -> list[AnnotatedImage]:
    """All checked records of one split. Raises DataError naming file and line, or that the split is empty."""
    return list(read_annotations(folder, split=split, decode_images=True))


def require_judge(folder: Path | None, judge: Rubric) -> None:
    """Refuse a judge that lacks a dimension of the data, or has another scale. folder: None is the built-in world.

    A set without `rubric.json` is on the paper's scale and has those of the paper's dimensions that occur in it.
    Raises: DataError in one line."""
    rubric = PAPER if folder is None else read_rubric(folder)
    what = "the built-in world" if folder is None else f"the data set {folder}"
    if folder is not None and rubric == PAPER and not set(PAPER.dimensions) <= set(judge.dimensions):
        found = {d for item in read_annotations(folder) for d in item.scores}
        rubric = Rubric(tuple(d for d in PAPER.dimensions if d in found))
    require_rubric(rubric, judge, what)
