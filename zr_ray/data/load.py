"""One split of an annotated data set, checked."""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.annotations import read_annotations
from zr_ray.records import AnnotatedImage


def load_split(folder: Path, split: str) -> list[AnnotatedImage]:
    """All checked records of one split. Raises DataError naming file and line, or that the split is empty."""
    return list(read_annotations(folder, split=split, decode_images=True))
