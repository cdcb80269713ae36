"""The check of one annotation record, field by field; `annotations.py` documents the format."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from zr_ray.data.files import is_file
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER, RUBRIC_FILE, Rubric

SPLITS = ("train", "dev", "test")
REQUIRED = ("id", "group", "split", "prompt", "image", "scores")
OPTIONAL = ("origin", "truth", "reasoning")
UNSCORED = "unscored"
"""Origin of a record without scores: an image for a teacher to label."""


def check_head(
    raw: dict, where: str, required: tuple[str, ...], optional: tuple[str, ...], strings: tuple[str, ...]
) -> None:
    """What every kind of record must fulfil: its fields, non-empty `strings`, a known split. where: file and line.
    Raises: DataError."""
    missing = [name for name in required if name not in raw]
    if missing:
        raise DataError(f"{where}: wanted fields {', '.join(required)}, missing {', '.join(missing)}; add them")
    unknown = sorted(set(raw) - set(required) - set(optional))
    if unknown:
        raise DataError(
            f"{where}: got unknown field {unknown[0]!r}; known: {', '.join(required + optional)}; rename or remove it"
        )
    for name in strings:
        if name in raw and (not isinstance(raw[name], str) or not raw[name].strip()):
            raise DataError(f"{where}: wanted a non-empty string in {name!r}, got {raw[name]!r}; fill it in")
        if name in raw and not _is_unicode(raw[name]):
            raise DataError(
                f"{where}: wanted valid Unicode in {name!r}, got {ascii(raw[name])[:80]} with half of a surrogate pair;"
                " write the text again"
            )
    if raw["split"] not in SPLITS:
        raise DataError(f"{where}: wanted split {', '.join(SPLITS)}, got {raw['split']!r}; correct it")


def checked_record(
    raw: dict, where: str, root: Path, rubric: Rubric = PAPER, image_exists: bool = True
) -> AnnotatedImage:
    """The item of a raw record.

    Args: where: file and line, for messages. root: folder of the images. rubric: of the data set. image_exists: whether
    the image file must be there.   Raises: DataError."""
    check_head(raw, where, REQUIRED, OPTIONAL, strings=(*REQUIRED[:-1], "origin"))
    reasoning = _per_dimension(raw, "reasoning", where, rubric)
    for dimension, text in reasoning.items():
        if not isinstance(text, str):
            raise DataError(f"{where}: wanted a string in reasoning.{dimension}, got {text!r}; correct it")
    scores = {
        d: _score(value, raw["split"], f"{where}: scores.{d}", rubric)
        for d, value in _per_dimension(raw, "scores", where, rubric).items()
    }
    if not scores and raw.get("origin") != UNSCORED:
        raise DataError(
            f"{where}: wanted a score in at least one dimension, got none; add one, remove the record, or give it the"
            f" origin {UNSCORED!r} if a teacher is to label it"
        )
    truth = {
        d: _on_scale(value, f"{where}: truth.{d}", rubric)
        for d, value in _per_dimension(raw, "truth", where, rubric).items()
    }
    image = image_path(raw["image"], where, root, image_exists)
    return AnnotatedImage(
        raw["id"],
        raw["group"],
        raw["split"],
        raw["prompt"],
        image,
        scores,
        raw.get("origin", "unknown"),
        truth,
        reasoning,
    )


def _per_dimension(raw: dict, name: str, where: str, rubric: Rubric) -> dict:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise DataError(f"{where}: wanted {{dimension: value}} in {name!r}, got {value!r}; correct it")
    unknown = [d for d in value if d not in rubric.dimensions]
    if unknown:
        raise DataError(
            f"{where}: got unknown dimension {unknown[0]!r} in {name!r}; known: {', '.join(rubric.dimensions)}; rename"
            f" or remove it, or name the set's dimensions in {RUBRIC_FILE} beside it"
        )
    return value


def _on_scale(value: object, where: str, rubric: Rubric) -> float:
    low, high = rubric.bins[0], rubric.bins[-1]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DataError(f"{where}: wanted a number in [{low:g}, {high:g}], got {value!r}; rescale or remove it")
    return float(value)


def _score(value: object, split: str, where: str, rubric: Rubric) -> float | tuple[float, ...]:
    if isinstance(value, list):
        if not value:
            raise DataError(f"{where}: wanted at least one score, got an empty list; add one or remove the dimension")
        given = tuple(_on_scale(entry, where, rubric) for entry in value)
        if len(given) > 1:
            if split == "train":
                raise DataError(
                    f"{where}: wanted one rubric score in split 'train', got {len(given)} annotators' scores; aggregate"
                    " them"
                )
            return given
        value = given[0]
    score = _on_scale(value, where, rubric)
    if split == "train" and score not in rubric.bins:
        raise DataError(
            f"{where}: wanted a bin of {', '.join(map(str, rubric.bins))}, got {score!r}; round it to the nearest one"
        )
    return score


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_path(name: str, where: str, root: Path, must_exist: bool = True) -> Path:
    """Absolute, normalized path of an image named relative to `root`.

    Raises: DataError if it is absolute, outside, or (must_exist) no file."""
    base = os.path.abspath(root)  # strings: paths would take most of the time of a large set
    whole = os.path.normpath(os.path.join(base, name))
    if os.path.isabs(name) or not (whole + os.sep).startswith(base.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{where}: wanted an image path relative to and inside {root}, got {name!r}; move the image there"
        )
    path = Path(whole)
    if must_exist and not os.path.isfile(whole):  # false for names that no file system holds, too
        raise DataError(
            f"{where}: wanted an image file at {str(path)!r}, there is none{_near(path, name, root)}; correct 'image'"
            " or add the file"
        )
    return path


def _near(path: Path, name: str, root: Path) -> str:
    """What is there instead, for names that another system wrote: backslashes, other case, other Unicode form."""
    if "\\" in name and is_file(root / name.replace("\\", "/")):
        return f", but {name.replace(chr(92), '/')!r} is: write / between folders"

    def spelling(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    try:
        others = [one.name for one in path.parent.iterdir() if spelling(one.name) == spelling(path.name)]
    except OSError:
        return ""
    return f", but {others[0]!r} is: case and Unicode form count" if others else ""
