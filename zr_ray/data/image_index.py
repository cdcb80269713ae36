"""What is known of a data set's images, so that a run's start opens none of them: `image_index.parquet` beside the
annotation file, columns of the set joined by `image`.

    image          path as the records name it, normalized: relative to the folder, with /
    file_bytes     size of the file when it was read
    mtime_ns       when it was last changed then, ns since 1970
    height, width  pixels, as a judge sees the image
    content_hash   32 hex digits of the decoded pixels on white: one picture has one, whatever its format
    head_hash      32 hex digits of the file's size and beginning (`glance.py`), to compare with images not yet indexed
    notes          what the decoder did that people may want counted (`images.decode`)
    error          why the image cannot be used; null if it can, and what stands above from height on is null if not

A row holds as long as its file has the size and the time of the row. `jobs/data/index.py` reads what is new or changed
and writes the whole file anew, atomically. The annotation file stays as its author wrote it, and a reader that knows
of no index does not look at this one.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.files import write_whole
from zr_ray.data.glance import HEAD, head_hash
from zr_ray.data.images import MAX_PIXELS, TRANSPARENT, WHITE, configured_background, decode
from zr_ray.errors import DataError

INDEX_FILE = "image_index.parquet"
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("file_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("content_hash", pa.string()),
        ("head_hash", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)
_OF_PIXELS = ("height", "width", "content_hash", "head_hash", "notes")
_SECOND = 10**9


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """One row of the index; the module's first lines say what the columns are."""

    image: str
    file_bytes: int
    mtime_ns: int
    height: int = 0
    width: int = 0
    content_hash: str = ""
    head_hash: str = ""
    notes: tuple[str, ...] = ()
    error: str | None = None

    def holds_for(self, status: os.stat_result) -> bool:
        """Whether a file of this status is the one that was read: equal size and time. A time without its part of a
        second is equal, too: what tar keeps."""
        whole = self.mtime_ns - self.mtime_ns % _SECOND
        return status.st_size == self.file_bytes and status.st_mtime_ns in (self.mtime_ns, whole)


def look_at(folder: Path, image: str) -> IndexedImage:
    """The row of one image file, decoded whole. image: path relative to `folder`. A file that cannot be used is a row
    with an error; one that cannot even be opened has -1 bytes."""
    try:
        status = os.stat(folder / image)  # before the file is read: what changes meanwhile will not hold
        content = (folder / image).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return IndexedImage(image, -1, -1, error=f"{image}: wanted a readable image file, got: {reason}; add the file")
    try:
        seen = decode(io.BytesIO(content), image, MAX_PIXELS, background=WHITE)
    except DataError as error:
        return IndexedImage(image, status.st_size, status.st_mtime_ns, error=str(error))
    height, width = seen.pixels.shape[:2]
    hashes = content_hash(seen.pixels), head_hash(len(content), content[:HEAD])
    return IndexedImage(image, status.st_size, status.st_mtime_ns, height, width, *hashes, seen.notes)


def content_hash(pixels: np.ndarray) -> str:
    """32 hex digits of [H, W, 3] uint8 pixels and their size."""
    digest = hashlib.blake2b(f"{pixels.shape[0]}x{pixels.shape[1]}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


class ImageIndex:
    """The index of one data set. Verbs: about, update, save."""

    def __init__(self, folder: Path | str) -> None:
        """Read it; a folder without one has an empty index.   Raises: DataError if the file is none of ours."""
        self.folder = os.path.normpath(Path(folder).absolute())
        self.file = Path(self.folder) / INDEX_FILE
        self.rows: dict[str, IndexedImage] = {}
        self._background_is_white = configured_background() == WHITE
        if self.file.is_file():
            self._read()

    def _read(self) -> None:
        try:
            with pq.ParquetFile(self.file) as parquet:
                if parquet.schema_arrow.names != SCHEMA.names:
                    raise ValueError(f"its columns are {', '.join(parquet.schema_arrow.names)}")
                for batch in parquet.iter_batches(batch_size=4096, use_threads=False):
                    self.update(rows_of(pa.Table.from_batches([batch])))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{self.file}: wanted an index of images, got: {error}; remove it and run jobs/data/index.py again"
            ) from error

    def name(self, image: Path) -> str:
        """What the index calls an image of this set. image: absolute and normalized, as records have it."""
        return str(image)[len(self.folder) :].lstrip(os.sep).replace(os.sep, "/")

    def about(self, image: Path) -> IndexedImage | None:
        """The row of an image if it still holds; None if it is not indexed, has changed, or cannot be found."""
        row = self.rows.get(self.name(image))
        if row is None or (TRANSPARENT in row.notes and not self._background_is_white):
            return None  # the row's pixels lie on white
        try:
            return row if row.holds_for(os.stat(image)) else None
        except OSError:
            return None

    def update(self, rows: Iterable[IndexedImage]) -> None:
        """Take rows in, in place of older ones of the same images. Files that could not be opened are left out: there
        is nothing by which such a row would hold."""
        for row in rows:
            self.rows.pop(row.image, None)
            if row.file_bytes >= 0:
                self.rows[row.image] = row

    def save(self) -> Path:
        """Write the index; atomic. Equal rows give equal bytes.   Returns: the file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table_of(self.rows[image] for image in sorted(self.rows)), sink, compression="zstd")
        write_whole(self.file, sink.getvalue().to_pybytes())
        return self.file


def table_of(rows: Iterable[IndexedImage]) -> pa.Table:
    """Rows as a table of SCHEMA; null is what is not known of an image that cannot be used."""
    rows = list(rows)
    columns = {
        name: [None if row.error and name in _OF_PIXELS else getattr(row, name) for row in rows]
        for name in SCHEMA.names
    }
    return pa.table(columns, schema=SCHEMA)


def rows_of(table: pa.Table) -> Iterator[IndexedImage]:
    """What `table_of` made a table of."""
    for row in table.to_pylist():
        known = {name: value for name, value in row.items() if value is not None}
        yield IndexedImage(**known | {"notes": tuple(known.get("notes", ()))})
