"""Teacher labels on disk: score distributions by content of prompt and image, with their provenance.

    <folder>/manifest.json         what made the labels; a folder only takes labels of one provenance
             part-000000.parquet   one row an item (`label_schema`); a part is complete or not there, never changed

An item is named by the hash of its prompt and image file, so the same picture is labeled once whatever data set it is
in, and labels of another picture can never be taken for its own. One process writes at a time (`locked`).
Left out on purpose: how labels are made (`loops/label.py`), and removal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.files import write_whole
from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric

MANIFEST = "manifest.json"
KEPT_FINGERPRINTS = 2**18
"""Fingerprints that a process keeps, some 300 bytes each: driver and learners ask for those of all items again and
again."""


def label_schema(rubric: Rubric) -> pa.Schema:
    """Columns of a part. log_q: K nats, mean of the valid traces, null without one. tokens: generated, of all traces.
    id: of the item it was labeled as, information only. error: why the item could not be labeled, null if it was."""
    return pa.schema(
        [
            ("fingerprint", pa.string()),
            ("id", pa.string()),
            ("log_q", pa.struct([(d, pa.list_(pa.float32())) for d in rubric.dimensions])),
            ("valid", pa.struct([(d, pa.int32()) for d in rubric.dimensions])),  # well-formed traces
            ("tokens", pa.struct([(d, pa.int32()) for d in rubric.dimensions])),
            ("worker", pa.string()),  # host and process that labeled it
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Label:
    """The teacher's answer on one item."""

    log_q: np.ndarray
    """[D, K] float32 nats; nan where no trace was well formed."""
    valid: np.ndarray
    """[D] well-formed traces."""
    tokens: np.ndarray
    """[D] generated tokens of all traces."""
    worker: str
    error: str | None


def fingerprint(item: AnnotatedImage) -> str:
    """32 hex digits of prompt and image file. A process reads a file once, and again when its size or time has changed.

    Raises: DataError if the file cannot be read."""
    try:
        status = os.stat(item.image)
        return _fingerprint(item.prompt, str(item.image), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"item {item.id!r}: image {item.image} cannot be read ({error.strerror}); add the file"
        ) from error


@lru_cache(KEPT_FINGERPRINTS)
def _fingerprint(prompt: str, path: str, size: int, mtime_ns: int) -> str:
    """size, mtime_ns: of the file, they only tell which of its states is meant."""
    return hashlib.sha256(prompt.encode() + b"\0" + Path(path).read_bytes()).hexdigest()[:32]


def fingerprints(items: Sequence[AnnotatedImage]) -> list[str]:
    """`fingerprint` of every item, in order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(fingerprint, items))


class LabelSet:
    """One folder of labels. Verbs: locked, read, append."""

    def __init__(self, folder: Path, provenance: dict, rubric: Rubric, about: dict | None = None) -> None:
        """Open the folder, or make it. provenance: JSON values that decide the labels. rubric: the teacher's. about:
        further facts, written once.

        Raises: ConfigError if the folder holds labels of another provenance."""
        self.folder, self.rubric = Path(folder), rubric
        self.schema = label_schema(rubric)
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = self.folder / MANIFEST
        wanted = json.loads(json.dumps(provenance | {"dimensions": rubric.dimensions, "bins": rubric.bins}))
        if not manifest.is_file():
            write_whole(manifest, json.dumps({"provenance": wanted, "about": about or {}}, indent=1).encode())
        held = json.loads(manifest.read_text())["provenance"]
        if held != wanted:
            keys = [k for k in sorted(held | wanted) if held.get(k) != wanted.get(k)]
            different = ", ".join(f"{k} is {held.get(k)}, wanted {wanted.get(k)}" for k in keys)
            raise ConfigError(f"{self.folder} holds labels of another origin: {different}; choose another label.path")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The right to append, for this process; ends with the block or the process. Raises ConfigError if another one
        has it."""
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another run is labeling into {self.folder}; wait for it, or choose another label.path"
                ) from None
            yield

    def parts(self) -> list[Path]:
        """Complete parts, in the order in which they were written."""
        return sorted(self.folder.glob("part-*.parquet"))

    def read(self) -> dict[str, Label]:
        """All labels by fingerprint. Raises DataError on a damaged part or an item that was labeled twice."""
        labels: dict[str, Label] = {}
        for path in self.parts():
            try:
                rows = pq.read_table(path, schema=self.schema).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{path}: wanted a part of a label set, pyarrow says: {error}; remove it, it is made again"
                ) from error
            for row in rows:
                if row["fingerprint"] in labels:
                    raise DataError(
                        f"{path}: item {row['id']!r} is labeled twice; remove this file, what it lacks is made again"
                    )
                labels[row["fingerprint"]] = _label(row, self.rubric)
        return labels

    def append(self, table: pa.Table) -> Path:
        """Write one part; when this returns it is on disk. Only inside `locked`."""
        number = int(self.parts()[-1].stem.removeprefix("part-")) + 1 if self.parts() else 0
        sink = pa.BufferOutputStream()
        pq.write_table(table.select(self.schema.names).cast(self.schema), sink)
        path = self.folder / f"part-{number:06d}.parquet"
        write_whole(path, sink.getvalue().to_pybytes())
        return path


def _label(row: dict, rubric: Rubric) -> Label:
    log_q = [
        row["log_q"][d] if row["log_q"] and row["log_q"][d] is not None else [np.nan] * len(rubric.bins)
        for d in rubric.dimensions
    ]
    counts = [[(row[name] or {}).get(d) or 0 for d in rubric.dimensions] for name in ("valid", "tokens")]
    return Label(
        np.asarray(log_q, np.float32), np.asarray(counts[0]), np.asarray(counts[1]), row["worker"], row["error"]
    )
