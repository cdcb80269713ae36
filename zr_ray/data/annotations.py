"""Annotated text-image data on disk: the one format everything downstream sees.

A data set is a folder with image files and either `annotations.jsonl` (one record a line) or `annotations.parquet` (the
same columns, one record a row). A record:

    id         string, unique in the data set
    group      string; records of one group share their prompt and split, and are compared with one another
    split      "train", "dev" or "test"
    prompt     string
    image      path of the image file, relative to the folder and inside it
    scores     {dimension: score}. Train: one rubric score, a bin of S (1.0, 1.5, ... 5.0). Dev and test: one number on
               the scale ([1, 5]), or a list with every annotator's score. A dimension without a score is left out
    origin     optional string: where image and scores come from ("rendered" for the simulated world, "generated",
               "human", ...); "unknown" when absent. "unscored": no score is needed, a teacher labels the image
    truth      optional {dimension: number on the scale}: true scores, simulated data only
    reasoning  optional {dimension: string}: reasoning text without marker and score

Dimensions and scale are the paper's, unless `rubric.json` beside the file names others (`rubrics.py`).
Parquet columns have one type, so there `scores` is a struct of lists, and absent entries are null. In both formats a
list of one number means that number. Unknown fields are refused: a misspelled field would otherwise be lost silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.checks import REQUIRED, SPLITS, checked_record
from zr_ray.data.files import atomic_file, json_lines
from zr_ray.data.images import MAX_PIXELS, check_images, load_image
from zr_ray.data.rubrics import read_rubric, write_rubric
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER, Rubric

__all__ = ["SPLITS", "check_images", "load_image", "read_annotations", "write_annotations"]

FILES = {"jsonl": "annotations.jsonl", "parquet": "annotations.parquet"}


def read_annotations(
    path: Path | str, *, split: str | None = None, decode_images: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[AnnotatedImage]:
    """Stream the records of a data set in file order, checking every one of them, also those outside `split`.

    Args: path: the folder, or its annotation file. split: only records of this split; None for all. decode_images: also
    decode the image of every record that is returned (slow, finds damaged and huge files before a run does).
    Raises: DataError naming file and line at the first record that breaks the format; at the end if the split is empty.
    """
    for where, item in located_annotations(path, split=split):
        if decode_images:
            _decoded(item, where, max_pixels)
        yield item


def located_annotations(
    path: Path | str, *, split: str | None = None, images_exist: bool = True
) -> Iterator[tuple[str, AnnotatedImage]]:
    """("FILE: line N", record) of every record; arguments and errors as `read_annotations`.

    Args: images_exist: False takes records whose image file is missing, too."""
    if split is not None and split not in SPLITS:
        raise DataError(f"wanted a split of {', '.join(SPLITS)}, got {split!r}; correct the name")
    file = annotation_file(path)
    rubric = read_rubric(file)
    raws = parquet_records(file, str(file)) if file.suffix == ".parquet" else json_lines(file)
    checked = ((where, checked_record(raw, where, file.parent, rubric, images_exist)) for where, raw in raws)
    yield from consistent_records(checked, str(file), split)


def consistent_records(
    records: Iterable[tuple[str, AnnotatedImage]], name: str, split: str | None = None
) -> Iterator[tuple[str, AnnotatedImage]]:
    """Records of one set, checked against one another: unique ids, one prompt and one split a group.

    Args: records: ("FILE: line N", record). name: of the set, for messages. split: what is yielded, None for all.
    Raises: DataError, at the end if there was nothing to yield."""
    ids: dict[str, str] = {}
    groups: dict[str, tuple[str, str, str]] = {}
    counts = dict.fromkeys(SPLITS, 0)
    for where, item in records:
        if item.id in ids:
            raise DataError(
                f"{where}: wanted unique ids, id {item.id!r} is already at {ids[item.id]}; rename or remove one of"
                " the two"
            )
        ids[item.id] = where.rpartition(": ")[2]
        prompt, group_split, first = groups.setdefault(item.group, (item.prompt, item.split, ids[item.id]))
        if prompt != item.prompt:
            raise DataError(
                f"{where}: wanted one prompt per group, group {item.group!r} has {prompt!r} at {first} and"
                f" {item.prompt!r} here; give the records different groups"
            )
        if group_split != item.split:
            raise DataError(
                f"{where}: wanted one split per group, group {item.group!r} is {group_split!r} at {first} and"
                f" {item.split!r} here; move the whole group to one split"
            )
        counts[item.split] += 1
        if split is None or item.split == split:
            yield where, item
    if not (counts[split] if split else sum(counts.values())):
        held = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"{name}: wanted records of split {split or 'any'!r}, got none (records: {held}); add some or choose"
            " another"
        )


def _decoded(item: AnnotatedImage, where: str, max_pixels: int) -> None:
    try:
        load_image(item.image, max_pixels)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def annotation_file(path: Path | str) -> Path:
    """The annotation file of a folder, or the file itself.   Raises: DataError."""
    path = Path(path)
    if path.is_file():
        if path.suffix[1:] not in FILES:
            raise DataError(
                f"{path}: wanted a .jsonl or .parquet file, got {path.name!r}; name the annotation file or its folder"
            )
        return path
    found = [path / name for name in FILES.values() if (path / name).is_file()]
    if len(found) != 1:
        got = "both" if found else "neither" if path.is_dir() else "no such folder"
        raise DataError(
            f"{path}: wanted {' or '.join(FILES.values())} in this folder, got {got}; name the file, or correct the"
            " path"
        )
    return found[0]


def parquet_records(source: Path | BinaryIO, name: str, batch_rows: int = 1024) -> Iterator[tuple[str, dict]]:
    """Every row of a Parquet file as ("NAME: line N", record without nulls), streamed: memory is that of `batch_rows`
    rows and of one page of each column, whatever the file's row groups.   Raises: DataError."""
    number = 0
    try:
        # columns are read through a buffer, not a row group at a time
        with pq.ParquetFile(source, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=batch_rows, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}: line {number}", _without_nulls(row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: wanted a Parquet file, pyarrow says after record {number}: {error}; write the file again"
        ) from error


def _without_nulls(row: dict) -> dict:
    """Null means absent, in the row and inside its structs; a map column arrives as (key, value) pairs. The index that
    pandas writes for a filtered table (`__index_level_0__`) is no field."""
    record = {name: value for name, value in row.items() if value is not None and not name.startswith("__index_level_")}
    for name in {"scores", "truth", "reasoning"} & set(record):
        value = record[name]
        if isinstance(value, list) and all(isinstance(entry, tuple) for entry in value):
            value = dict(value)
        if isinstance(value, dict):
            record[name] = {key: entry for key, entry in value.items() if entry is not None}
    return record


def write_annotations(
    root: Path | str, items: Iterable[AnnotatedImage], format: str = "jsonl", rubric: Rubric = PAPER
) -> Path:
    """Write the annotation file of a folder that already holds the images; atomic (temporary file, fsync, rename).

    Args: items: streamed; their images must lie inside `root`. format: "jsonl" or "parquet". rubric: of the set,
    written beside it unless it is the paper's. Returns: the file.
    Raises: DataError if the format is unknown, the folder already has a file of the other format, or an image lies
    outside.
    """
    root = Path(root).absolute()
    if format not in FILES:
        raise DataError(f"wanted format {' or '.join(FILES)}, got {format!r}; correct it")
    other = [root / name for kind, name in FILES.items() if kind != format and (root / name).exists()]
    if other:
        raise DataError(
            f"{other[0]} is already there and would make the folder ambiguous; remove it or write that format"
        )
    target = root / FILES[format]
    records = (_raw(item, root, rubric) for item in items)
    with atomic_file(target) as file:
        _write_jsonl(file, records) if format == "jsonl" else _write_parquet(file, records, rubric)
        write_rubric(root, rubric)  # before the records: they are never there without their scale
    return target


def _raw(item: AnnotatedImage, root: Path, rubric: Rubric) -> dict:
    unknown = [d for d in (*item.scores, *item.truth, *item.reasoning) if d not in rubric.dimensions]
    if unknown:
        raise DataError(
            f"item {item.id!r}: wanted dimensions of the set's rubric, {', '.join(rubric.dimensions)}, got"
            f" {unknown[0]!r}; write the set with a rubric that has it"
        )
    if not item.image.is_relative_to(root):
        raise DataError(f"item {item.id!r}: wanted an image inside {root}, got {item.image}; copy it there first")
    image = item.image.relative_to(root).as_posix()
    scores = {d: list(s) if isinstance(s, tuple) else s for d, s in item.scores.items()}
    record = {
        "id": item.id,
        "group": item.group,
        "split": item.split,
        "prompt": item.prompt,
        "image": image,
        "scores": scores,
    }
    optional = {"origin": item.origin, "truth": item.truth, "reasoning": item.reasoning}
    return record | {name: value for name, value in optional.items() if value}


def _write_jsonl(file, records: Iterator[dict]) -> None:
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _parquet_schema(dimensions: tuple[str, ...]) -> pa.Schema:
    return pa.schema(
        [(name, pa.string()) for name in REQUIRED[:-1]]
        + [
            ("scores", pa.struct([(d, pa.list_(pa.float64())) for d in dimensions])),
            ("origin", pa.string()),
            ("truth", pa.struct([(d, pa.float64()) for d in dimensions])),
            ("reasoning", pa.struct([(d, pa.string()) for d in dimensions])),
        ]
    )


def _write_parquet(file, records: Iterator[dict], rubric: Rubric) -> None:
    schema = _parquet_schema(rubric.dimensions)
    with pq.ParquetWriter(file, schema) as writer:
        rows = []
        for record in records:
            record["scores"] = {d: s if isinstance(s, list) else [s] for d, s in record["scores"].items()}
            rows.append(record)
            if len(rows) == 1024:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
