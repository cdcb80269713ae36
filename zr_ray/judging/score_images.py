"""Scores of a user's own images: which images there are, what a judge says about them, a table that goes on where it
stopped.

A row is an image with its prompt and the columns it came with. An image that cannot be read is listed with its error
and never scored. Scores are appended to `<out>.part` batch by batch; the final table is written from it.
Left out on purpose: references; `jobs/evaluate.py` and `jobs/evaluate_reward.py` compare with people's scores.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.files import atomic_file
from zr_ray.data.images import load_image
from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
TABLES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ImageRow:
    """One image to score."""

    image: Path
    prompt: str
    columns: dict
    """What the input said about it, passed through."""

    @property
    def key(self) -> str:
        """16 hex digits of path and prompt: what a resumed run knows a row by."""
        return hashlib.sha256(f"{self.image}\0{self.prompt}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageScore:
    """What a judge says about one image; empty lists and an error where it could not be read."""

    mu: list[float]
    """[D] expected scores, rubric points."""
    deviation: list[float]
    """[D] standard deviations, rubric points."""
    q: list[list[float]]
    """[D][K] probabilities."""
    error: str = ""
    judge: str = ""
    """Hash of the judge that gave it: a service can change its judge between two requests."""


Judge = Callable[[list[np.ndarray], list[str]], list[ImageScore]]
"""(images [H, W, 3] uint8 of any sizes, prompts) -> scores."""


def read_rows(
    source: Path, *, prompt: str | None = None, image_column: str = "image", prompt_column: str = "prompt"
) -> list[ImageRow]:
    """Rows of an image file, a folder (searched through), or a CSV, JSONL or Parquet table.

    Args: prompt: for all images; None: from the table's column, or for `a.png` from `a.txt` beside it. Relative paths
    of a table are relative to it.   Raises: DataError if there is nothing to score, or a prompt or column is
    missing."""
    source = Path(source)
    if source.suffix.lower() in TABLES and source.is_file():
        return _table_rows(source, prompt, image_column, prompt_column)
    if source.is_file():
        paths = [source]
    else:
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"wanted an image, a table ({', '.join(TABLES)}) or a folder of images, found none in {source}")
    return [ImageRow(path, prompt or _prompt_beside(path), {"image": str(path)}) for path in paths]


def _prompt_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    if not text.is_file():
        raise DataError(f"{path} has no prompt: give one for all with --prompt, or write it into {text.name} beside it")
    return text.read_text().strip()


def _table_rows(source: Path, prompt: str | None, image_column: str, prompt_column: str) -> list[ImageRow]:
    if source.suffix == ".parquet":
        raw = pq.read_table(source).to_pylist()
    elif source.suffix == ".jsonl":
        raw = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
    else:
        with open(source, newline="") as file:
            raw = list(csv.DictReader(file))
    rows = []
    for number, columns in enumerate(raw, 1):
        text = prompt or columns.get(prompt_column)
        if not columns.get(image_column) or not text:
            raise DataError(
                f"{source}: row {number}: wanted columns {image_column!r} and {prompt_column!r}, got"
                f" {', '.join(columns)}; name others with --image-column and --prompt-column"
            )
        rows.append(ImageRow(source.parent / columns[image_column], text, columns))
    if not rows:
        raise DataError(f"{source} has no rows; there is nothing to score")
    return rows


def score_rows(
    rows: Sequence[ImageRow], judge: Judge, part: Path, *, origin: str, batch: int = 32
) -> Iterator[tuple[ImageRow, ImageScore]]:
    """Yield every row with its score, in order; those in `part` are not asked again.

    Args: part: file of what is done, one JSON line a row, made if missing. origin: names judge and settings; a part of
    another origin is refused.   Raises: DataError on a part of another origin."""
    done = _read_part(part, origin)
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        missing = [row for row in chunk if row.key not in done]
        if missing:
            fresh = _score(missing, judge)
            with open(part, "a") as file:
                for row, score in zip(missing, fresh, strict=True):
                    done[row.key] = score
                    file.write(json.dumps({"key": row.key} | score.__dict__) + "\n")
        yield from ((row, done[row.key]) for row in chunk)


def _score(rows: Sequence[ImageRow], judge: Judge) -> list[ImageScore]:
    images, errors = [], {}
    for row in rows:
        try:
            images.append(load_image(row.image))
        except DataError as error:
            errors[row.key] = ImageScore([], [], [], str(error))
    usable = [row for row in rows if row.key not in errors]
    scored = iter(judge(images, [row.prompt for row in usable]) if usable else [])
    return [errors[row.key] if row.key in errors else next(scored) for row in rows]


def _read_part(part: Path, origin: str) -> dict[str, ImageScore]:
    if not part.is_file():
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"origin": origin}) + "\n")
        return {}
    head, *lines = part.read_text().splitlines()
    if json.loads(head)["origin"] != origin:
        raise DataError(
            f"{part} was begun with {json.loads(head)['origin']}, now it is {origin}; remove it or name another output"
        )
    whole = [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave half a line
    return {line.pop("key"): ImageScore(**line) for line in whole}


def write_table(
    path: Path, found: Sequence[tuple[ImageRow, ImageScore]], dimensions: Sequence[str] = DIMENSIONS
) -> None:
    """CSV or Parquet, by the name's ending: the input's columns, then mu_<d>, deviation_<d>, q_<d>, judge and error.

    Args: dimensions: the judge's, in the order of the scores.   Raises: DataError for another ending."""
    rows = [row.columns | {"prompt": row.prompt} | score_columns(score, dimensions) for row, score in found]
    if path.suffix == ".parquet":
        with atomic_file(path) as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
    elif path.suffix == ".csv":
        with atomic_file(path) as file:
            lines = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
            file.write("".join(_csv_line(line) for line in lines).encode())
    else:
        raise DataError(f"wanted an output that ends in .csv or .parquet, got {path.name!r}; rename it")


def score_columns(score: ImageScore, dimensions: Sequence[str] = DIMENSIONS) -> dict:
    """The score as flat columns; None where an image was not scored."""
    columns: dict = {}
    for i, name in enumerate(dimensions):
        columns[f"mu_{name}"] = score.mu[i] if score.mu else None
        columns[f"deviation_{name}"] = score.deviation[i] if score.mu else None
        columns[f"q_{name}"] = score.q[i] if score.mu else None
    return columns | {"judge": score.judge or None, "error": score.error or None}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps([round(x, 6) for x in value]) if isinstance(value, list) else "" if value is None else str(value)


def _csv_line(cells: Sequence[str]) -> str:
    return ",".join('"' + c.replace('"', '""') + '"' if any(x in c for x in ',"\n\r') else c for c in cells) + "\r\n"
