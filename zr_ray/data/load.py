"""The annotated data a job works on: a folder of the user's, or the built-in simulated world written into the run
folder."""

from __future__ import annotations

from pathlib import Path

from zr_ray.config.sections import DataSection
from zr_ray.data.annotations import read_annotations
from zr_ray.records import AnnotatedImage


def data_folder(config: DataSection, run_path: Path) -> Path:
    """Folder of the annotated data; writes the simulated world there if the configuration names no folder (once per
    run)."""
    if config.path is not None:
        return config.path
    folder = run_path / "data"
    if not (folder / "annotations.jsonl").is_file():
        from zr_ray.world.build import write_world

        write_world(folder, **config.world.model_dump())
    return folder


def load_split(folder: Path, split: str) -> list[AnnotatedImage]:
    """All checked records of one split. Raises DataError naming file and line, or that the split is empty."""
    return list(read_annotations(folder, split=split, decode_images=True))
