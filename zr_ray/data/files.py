"""JSON Lines in, with file and line in every message; whole files out, or none."""

from __future__ import annotations

import codecs
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zr_ray.errors import DataError


def json_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Every object of a JSON Lines file as ("FILE: line N", object), streamed; blank lines count and are skipped.

    UTF-8, or UTF-16 and UTF-32 with a byte order mark.
    Raises: DataError naming file and line if a line is not one JSON object, or has a key twice."""
    for number, line in _numbered_lines(file):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            found = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, a number of 5,000 digits
            raise DataError(
                f"{where}: wanted one JSON object in UTF-8, got {line[:60]!r} ({error}); correct the line"
            ) from error
        if not isinstance(found, dict):
            raise DataError(f"{where}: wanted a JSON object, got {type(found).__name__}; write one record a line")
        yield where, found


def _numbered_lines(file: Path) -> Iterator[tuple[int, bytes | str]]:
    """Lines from 1: as bytes, so that a bad one is found by its number, or as text where a mark names an encoding."""
    encoding, number = text_encoding(file), 0
    if encoding == "utf-8-sig":
        with open(file, "rb") as lines:
            yield from enumerate(lines, 1)
        return
    try:
        with open(file, encoding=encoding, newline="\n") as text:
            for number, line in enumerate(text, 1):
                yield number, line
    except UnicodeError as error:
        raise DataError(
            f"{file}: after line {number}: wanted {encoding.upper()}, got: {error}; save the file again as UTF-8"
        ) from error


def unique_keys(pairs: Sequence[tuple[str, object]]) -> dict:
    """`object_pairs_hook` of a JSON decoder.   Raises: ValueError if a key is written twice, of which Python keeps the
    last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is written twice")
    return found


def text_encoding(file: Path) -> str:
    """Encoding of a text file by its byte order mark: "utf-16", "utf-32", or "utf-8-sig", which also stands for
    none."""
    with open(file, "rb") as handle:
        start = handle.read(4)
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def is_file(path: Path) -> bool:
    """Whether a file is there; False for names that the file system cannot hold, too (300 characters, a NUL)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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


def write_whole(target: Path, content: bytes) -> None:
    """Write a file through `atomic_file`: after a crash the old or the new content is there."""
    with atomic_file(target) as file:
        file.write(content)
