"""A copy of a data set in which the training items are changed: what an ablation trains on. Images are hard links where
the file system allows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zr_ray.data.annotations import read_annotations, write_annotations
from zr_ray.data.rubrics import read_rubric
from zr_ray.records import AnnotatedImage


def copy_changed(source: Path, target: Path, change: Callable[[AnnotatedImage], AnnotatedImage]) -> None:
    """Copy a data set with `change` applied to items of split `train`; does nothing if the target is complete.

    Args: change: keeps the image; the copy gets its own.   Raises: DataError if the source breaks the format."""
    source, target = Path(source).absolute(), Path(target).absolute()
    if (target / "annotations.jsonl").is_file():
        return
    copies = []
    for item in read_annotations(source):
        image = target / item.image.relative_to(source)
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            _link(item.image, image)
        made = change(item) if item.split == "train" else item
        copies.append(replace(made, image=image))
    write_annotations(target, copies, rubric=read_rubric(source))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
