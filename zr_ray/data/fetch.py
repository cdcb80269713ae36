"""A Parquet set from anywhere as an annotated set on disk: records stream, images become files.

The source is a Parquet file, or a folder of them (shards, in the order of their names), on a local disk or behind any
URL that fsspec knows (s3://, gs://, https://, ...). Its columns are those of `annotations.py`; `image` is

    a string            path of an image file, relative to the folder of the Parquet file
    binary              the image file itself
    {"bytes", "path"}   the column type of the `datasets` library; bytes count if they are there

Files keep their path; images that came in a column are named by their content, so that equal ones are one file. The
annotation file is written last: a fetch that was killed leaves images but no data set, and is started again. Memory is
that of `BATCH_ROWS` rows and one page of the Parquet file (at most 1,024 rows as pyarrow writes them).
Left out on purpose: runs that read images from a URL themselves. An image is read once an epoch by each of several
workers; from a disk near them, or a shared one, that costs nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import fsspec
from PIL import Image

from zr_ray.data.annotations import FILES, consistent_records, parquet_records, write_annotations
from zr_ray.data.checks import checked_record
from zr_ray.data.image_index import INDEX_FILE
from zr_ray.data.images import FORMATS
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import RUBRIC_FILE, Rubric

BATCH_ROWS = 64
"""Rows in memory at a time, and image files asked for at once: 20 MB of photographs of 1024 x 1024."""
SAY_S = 10.0
"""Between two lines of progress."""


class Source:
    """A Parquet set behind a path or a URL."""

    def __init__(self, url: str) -> None:
        """Raises: DataError if nothing reads such a URL, or there is no Parquet file."""
        self.url = url
        try:
            self.files, path = fsspec.url_to_fs(url)
            self.shards = self._shards(path)
        except (ImportError, ValueError, OSError) as error:  # no package for it, no such protocol, no right to look
            raise DataError(
                f"{url}: wanted a path or a URL that fsspec reads, it says: {error}; correct it, or install that"
            ) from error
        if not self.shards:
            raise DataError(f"{url}: wanted a Parquet file or a folder with some, got none; correct it")

    def _shards(self, path: str) -> list[str]:
        if self.files.isfile(path):
            self.folder = posixpath.dirname(path)
            return [path]
        self.folder = path = path.rstrip("/")
        found = self.files.glob(f"{path}/*.parquet") or self.files.glob(f"{path}/**/*.parquet")
        return sorted(shard for shard in found if posixpath.basename(shard) != INDEX_FILE)

    def rubric_file(self) -> bytes | None:
        """`rubric.json` beside the first shard, if there is one."""
        path = posixpath.join(posixpath.dirname(self.shards[0]), RUBRIC_FILE)
        return self.files.cat_file(path) if self.files.isfile(path) else None

    def records(self) -> Iterator[tuple[str, dict, str | None, bytes]]:
        """("SHARD: line N", record, path of its image inside the set or None, bytes of the image), streamed.

        Raises: DataError."""
        for shard in self.shards:
            folder = posixpath.dirname(shard)
            with self.files.open(shard, "rb") as file:
                records = parquet_records(file, self.files.unstrip_protocol(shard), BATCH_ROWS)
                while rows := list(islice(records, BATCH_ROWS)):
                    yield from self._with_images(rows, folder)

    def _with_images(self, rows, folder: str) -> Iterator[tuple[str, dict, str | None, bytes]]:
        images = [_path_or_bytes(raw.get("image"), where) for where, raw in rows]
        with ThreadPoolExecutor(BATCH_ROWS) as pool:  # object stores answer many questions as fast as one
            files = {
                image: pool.submit(self.files.cat_file, posixpath.join(folder, image))
                for image in images
                if isinstance(image, str)
            }
        for (where, raw), image in zip(rows, images, strict=True):
            if isinstance(image, bytes):
                yield where, raw, None, image
                continue
            failed = files[image].exception()
            if failed is not None:
                said = f"{type(failed).__name__}: {failed}"
                raise DataError(f"{where}: wanted an image file at {image!r} beside it, got {said}; correct 'image'")
            # shards in folders of their own may call different images the same
            inside = posixpath.join(posixpath.relpath(folder, self.folder), image)
            yield where, raw, posixpath.normpath(inside), files[image].result()


def fetch_set(url: str, folder: Path, say: Callable[[str], None] = print) -> int:
    """Write the set behind `url` into `folder`: images, then annotations.parquet.

    Returns: records.   Raises: DataError naming shard and line of the first record that breaks the format or has no
    image; if the folder holds a set already."""
    folder = Path(folder).absolute()
    there = [folder / name for name in FILES.values() if (folder / name).exists()]
    if there:
        raise DataError(f"{there[0]}: wanted a folder without a data set, this one holds one; name another folder")
    source = Source(url)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rubric_file = source.rubric_file()
    (folder / RUBRIC_FILE).unlink(missing_ok=True)  # of a fetch from elsewhere that was killed
    if rubric_file is not None:
        (folder / RUBRIC_FILE).write_bytes(rubric_file)
    rubric = read_rubric(folder)
    count, said = 0, time.monotonic()

    def items() -> Iterator[AnnotatedImage]:
        nonlocal count, said
        for _, item in consistent_records(_checked(source, folder, rubric), url):
            count += 1
            yield item
            if time.monotonic() - said >= SAY_S:
                said = time.monotonic()
                say(f"{count} records fetched")

    write_annotations(folder, items(), "parquet", rubric)
    return count


def _checked(source: Source, folder: Path, rubric: Rubric) -> Iterator[tuple[str, AnnotatedImage]]:
    """Records of the source, each with its image file written."""
    written = set()
    for where, raw, path, content in source.records():
        name = _named_by_content(content) if path is None else path
        # the path is known to lie inside the folder before anything is written there
        item = checked_record(raw | {"image": name}, where, folder, rubric, image_exists=False)
        if name not in written and not (path is None and item.image.is_file()):
            written.add(name)
            item.image.parent.mkdir(parents=True, exist_ok=True)
            part = item.image.with_name(f".{uuid.uuid4().hex}")
            part.write_bytes(content)
            os.replace(part, item.image)
        yield where, item


def _path_or_bytes(image: object, where: str) -> str | bytes:
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, (str, bytes)) or not image:
        raise DataError(f"{where}: wanted path or bytes of an image in 'image', got {str(image)[:60]!r}; add them")
    return image


def _named_by_content(content: bytes) -> str:
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            kind = str(image.format).lower()
    except Exception:  # not an image: the index job, or a run's start, says so with the line
        kind = "bin"
    return f"images/{digest[:2]}/{digest}.{kind}"
