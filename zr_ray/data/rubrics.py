"""Which dimensions and which scale an annotation set has: `rubric.json` beside its annotations.

    {"dimensions": ["alignment", "text rendering"], "bins": [0, 1, 2, 3]}

Both keys are optional; what is absent, or a set without the file, is the paper's (`rubric.PAPER`). The text of the
rubric is the judge's: it is what a judge is asked (`scoring_format.json`).
"""

from __future__ import annotations

import json
from pathlib import Path

from zr_ray.data.files import atomic_file, text_encoding, unique_keys
from zr_ray.errors import DataError, ZrRayError
from zr_ray.rubric import PAPER, RUBRIC_FILE, Rubric

_KEYS = ("dimensions", "bins")


def read_rubric(path: Path | str) -> Rubric:
    """The rubric of a data set, named by its folder or by its annotation file.   Raises: DataError."""
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / RUBRIC_FILE
    if not file.is_file():
        return PAPER
    try:
        raw = json.loads(file.read_text(encoding=text_encoding(file)), object_pairs_hook=unique_keys)
    except ValueError as error:
        raise DataError(f"{file}: wanted JSON, got {error}; correct it") from error
    if not isinstance(raw, dict) or set(raw) - set(_KEYS) or not all(isinstance(v, list) for v in raw.values()):
        raise DataError(
            f"{file}: wanted an object with the lists {' and '.join(_KEYS)}, got {str(raw)[:200]}; correct it"
        )
    try:
        return Rubric(**{name: tuple(value) for name, value in raw.items()})
    except ZrRayError as error:
        raise DataError(f"{file}: {error}") from error


def write_rubric(root: Path | str, rubric: Rubric) -> None:
    """Write `rubric.json` into a folder; the paper's rubric needs no file and leaves none behind. Atomic."""
    file = Path(root) / RUBRIC_FILE
    if rubric == PAPER:
        file.unlink(missing_ok=True)
        return
    with atomic_file(file) as out:
        out.write(
            json.dumps({name: list(getattr(rubric, name)) for name in _KEYS}, ensure_ascii=False).encode() + b"\n"
        )
