"""The files that data sets are published in, read record by record: JSON arrays and objects, CSV, Parquet.

Published annotation files reach hundreds of megabytes in one JSON array; nothing here holds more than a record and a
buffer.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.files import json_lines, text_encoding, unique_keys
from zr_ray.errors import DataError

_CHUNK = 1 << 20
"""Characters read at a time."""
_LONGEST = 16 << 20
"""Characters a single record may have; a longer one is taken for a missing bracket."""

_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
"""White space between JSON values, and a byte order mark."""


def source_files(source: Path, patterns: Sequence[str]) -> list[Path]:
    """`source` itself if it is a file, else the files below it that match, sorted by name.   Raises: DataError if there
    is none."""
    if source.is_file():
        return [source]
    found = sorted({file for pattern in patterns for file in source.rglob(pattern) if file.is_file()})
    if not found:
        got = "no such file in it" if source.is_dir() else "no such folder"
        raise DataError(
            f"{source}: wanted {' or '.join(patterns)}, got {got}; name the file, or the folder that holds it"
        )
    return found


def json_records(file: Path) -> Iterator[tuple[str, dict]]:
    """Every object of a JSON array of objects, or of a JSON Lines file, as ("FILE: line N (record M)", object).

    Raises: DataError naming the line a broken record starts at."""
    source = _Text(file)
    if source.peek() == "{":
        source.handle.close()
        yield from json_lines(file)
        return
    source.expect("[", "a JSON array of objects")
    count = 0
    while source.more("]", count):
        where = f"{file}: line {source.line} (record {count + 1})"
        yield where, source.value(where, dict)
        count += 1
    source.end()


def split_records(source: Path) -> Iterator[tuple[str, tuple[str, dict]]]:
    """Every object of train.json and test.json as (where, (split, object)).   Raises: DataError, also for a file of
    another name."""
    for file in source_files(Path(source), ("train.json", "test.json")):
        if file.stem not in ("train", "test"):
            raise DataError(
                f"{file}: wanted train.json or test.json (the name decides the split), got {file.name!r}; rename it"
            )
        for where, row in json_records(file):
            yield where, (file.stem, row)


def json_members(file: Path) -> Iterator[tuple[str, str, dict]]:
    """Every member of a JSON object of objects as ("FILE: line N (record M)", name, object).   Raises: DataError."""
    source = _Text(file)
    source.expect("{", "a JSON object of objects")
    count = 0
    while source.more("}", count):
        where = f"{file}: line {source.line} (record {count + 1})"
        name = source.value(where, str)
        source.expect(":", f"a colon after {name!r}")
        yield where, name, source.value(where, dict)
        count += 1
    source.end()


class _Text:
    """A text file of which only a window is in memory, and the number of the line at the front of the window."""

    def __init__(self, file: Path) -> None:
        self.file, self.line, self.window, self.at = file, 1, "", 0
        self.handle = open(file, encoding=text_encoding(file))  # closed by end(), or with this object
        self.decoder = json.JSONDecoder(object_pairs_hook=unique_keys)

    def grow(self) -> bool:
        """Read on. False at the end of the file."""
        try:
            more = self.handle.read(_CHUNK)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.file}: wanted UTF-8 after line {self.line}, got {error}; save the file again as UTF-8"
            ) from error
        self.window, self.at = self.window[self.at :] + more, 0
        return bool(more)

    def skip(self, to: int) -> None:
        self.line += self.window.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self.skip(_BLANK.match(self.window, self.at).end())
            if self.at < len(self.window):
                return self.window[self.at]
            if not self.grow():
                return ""

    def expect(self, mark: str, wanted: str) -> None:
        got = self.peek()
        if got != mark:
            raise DataError(
                f"{self.file}: line {self.line}: wanted {wanted}, got {got or 'the end of the file'!r}; correct the"
                " file"
            )
        self.skip(self.at + 1)

    def more(self, closing: str, count: int) -> bool:
        """Whether another entry follows; takes the comma between entries, or the closing bracket."""
        if self.peek() == closing:
            self.skip(self.at + 1)
            return False
        if count:
            self.expect(",", f"a comma or {closing!r} after record {count}")
            self.peek()  # so that `line` is where the entry starts
        return True

    def value(self, where: str, kind: type) -> object:
        """The JSON value at the front, of the given kind."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.at)
                break
            except (ValueError, RecursionError) as error:  # more of the file may complete it
                if len(self.window) - self.at > _LONGEST or not self.grow():
                    start = self.window[self.at : self.at + 60]
                    raise DataError(
                        f"{where}: wanted a whole JSON {kind.__name__}, got {start!r} ({error}); correct the record"
                    ) from error
        if not isinstance(value, kind):
            raise DataError(
                f"{where}: wanted a JSON {kind.__name__}, got {type(value).__name__}: {str(value)[:60]}; correct the"
                " record"
            )
        self.skip(end)
        return value

    def end(self) -> None:
        if self.peek():
            rest = self.window[self.at : self.at + 60]
            raise DataError(f"{self.file}: line {self.line}: wanted the end of the file, got {rest!r}; remove it")
        self.handle.close()


def csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every row of a CSV file with a header as ("FILE: line N", row).

    Cells are separated by commas, semicolons or tabs, whichever the header uses; the text is UTF-8, or UTF-16 or UTF-32
    with a byte order mark: what spreadsheets write in different countries.
    Raises: DataError if a column is missing from the header, or a row has too few or too many cells."""
    with open(file, newline="", encoding=text_encoding(file)) as handle:
        reader = csv.DictReader(handle, strict=True, delimiter=_delimiter(handle, file, columns))
        try:
            header = list(reader.fieldnames or ())
            missing = [name for name in columns if name not in header]
            if missing:
                found = ", ".join(header) or "an empty file"
                raise DataError(
                    f"{file}: line 1: wanted columns {', '.join(columns)}, missing {', '.join(missing)} (got"
                    f" {found[:200]}); name this data set's file"
                )
            for row in reader:
                where = f"{file}: line {reader.line_num}"
                cells = [value for name, value in row.items() if name is not None and value is not None]
                if None in row or len(cells) != len(header):
                    got = len(cells) + len(row.get(None) or ())
                    raise DataError(
                        f"{where}: wanted {len(header)} cells, got {got}; correct the line (commas in quotes?)"
                    )
                yield where, row
        except (csv.Error, UnicodeError) as error:
            raise DataError(
                f"{file}: line {reader.line_num + 1}: wanted CSV in UTF-8 (or UTF-16 with a byte order mark), got:"
                f" {error}; save the file again as UTF-8"
            ) from error


def csv_columns(file: Path) -> tuple[str, ...]:
    """Names in the header of a CSV file, whatever separates them.   Raises: DataError if it is no text."""
    with open(file, newline="", encoding=text_encoding(file)) as handle:
        delimiter = _delimiter(handle, file, ())
        return tuple(name.strip() for name in next(csv.reader(handle, delimiter=delimiter), ()))


def _delimiter(handle: TextIO, file: Path, columns: Sequence[str]) -> str:
    """What separates the cells of the header: the mark that finds most of the columns, else the most frequent one."""
    try:
        header = handle.readline(_LONGEST)
    except UnicodeError as error:
        raise DataError(
            f"{file}: line 1: wanted CSV in UTF-8 (or UTF-16 with a byte order mark), got: {error}; save the file again"
            " as UTF-8"
        ) from error
    handle.seek(0)

    def found(mark: str) -> tuple[int, int]:
        cells = next(csv.reader([header], delimiter=mark), [])
        return len(set(columns) & set(cells)), len(cells)

    return max(",;\t", key=found)


def parquet_rows(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """Every row of a Parquet file as ("FILE: row N", row), only the named columns read; optional ones may be missing
    from the file.

    Raises: DataError if a column is missing or the file is no Parquet file."""
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            held = table.schema_arrow.names
            missing = [name for name in columns if name not in held]
            if missing:
                raise DataError(
                    f"{file}: wanted columns {', '.join(columns)}, missing {', '.join(missing)}; name this data set's"
                    " file"
                )
            wanted = [*columns, *(name for name in optional if name in held)]
            for batch in table.iter_batches(batch_size=64, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: wanted a Parquet file, pyarrow says after row {number}: {error}; download the file again"
        ) from error
