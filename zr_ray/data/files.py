"""JSON Lines in, with file and line in every message; whole files out, or none."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zr_ray.errors import DataError


def json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Every object of a JSON Lines file as ("FILE: line N", object), streamed; blank lines count and are skipped.

    Raises: DataError naming file and line if a line is not one JSON object in UTF-8."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}: line {number}"
            try:
                raw = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                raise DataError(
                    f"{where}: wanted one JSON object in UTF-8, got {line[:60]!r} ({error}); correct the line"
                ) from error
            if not isinstance(raw, dict):
                raise DataError(f"{where}: wanted a JSON object, got {type(raw).__name__}; write one record a line")
            yield where, raw


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under `target` only when the block ends without an exception (temporary file, fsync,
    rename)."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
