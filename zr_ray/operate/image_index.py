"""Make or renew the index of a data set's images (`data/image_index.py`) with Ray Data.

    records -> images whose row does not hold -> tasks that read and decode a batch of them -> rows -> index

What is done is saved every half minute, so a job that was killed goes on from there. A file with several names (hard
links) is read once. The folder must be under one path on all nodes.
Left out on purpose: the judge's limits (a run's start checks them, from the index), and repair of images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from zr_ray.data.annotations import annotation_file, located_annotations
from zr_ray.data.image_index import ImageIndex, IndexedImage, look_at, rows_of, table_of
from zr_ray.errors import DataError
from zr_ray.run.observe import duration, within

SAVE_S = 30.0
"""Between two saves: what a killed job repeats at most."""
SAY_S = 10.0
"""Between two lines of progress."""


@dataclass(frozen=True)
class Survey:
    """What a data set holds, and which of its images are to be read."""

    index: ImageIndex
    records: tuple[tuple[str, str], ...]
    """("FILE: line N: item ID", image) of every record, in file order."""
    wanted: dict[str, tuple[str, ...]]
    """Image to read -> its other names in the set."""

    def line(self) -> str:
        """What there is and what is to do, for a log."""
        images = len({image for _, image in self.records})
        reading = sum(1 + len(others) for others in self.wanted.values())
        links = f" ({len(self.wanted)} files, the rest are further names of them)" if reading > len(self.wanted) else ""
        return f"{len(self.records)} records, {images} images: {images - reading} indexed, {reading} to read{links}"


def survey(path: Path) -> Survey:
    """Read the records and compare every image file's size and time with the index; opens no image.

    Args: path: folder of the set, or its annotation file.   Raises: DataError for a record that breaks the format."""
    index = ImageIndex(annotation_file(path).parent)
    records: list[tuple[str, str]] = []
    wanted: dict[str, list[str]] = {}
    first_names: dict[tuple[int, int], str] = {}  # of a file by device and inode
    seen = set()
    for where, item in located_annotations(path, images_exist=False):
        name = index.name(item.image)
        records.append((f"{where}: item {item.id!r}", name))
        if name in seen:
            continue
        seen.add(name)
        if index.about(item.image) is not None:
            continue
        try:
            status = os.stat(item.image)
            first = first_names.setdefault((status.st_dev, status.st_ino), name)
        except (OSError, ValueError):
            first = name  # the task that reads it says why it cannot
        if first == name:
            wanted[name] = []
        else:
            wanted[first].append(name)
    return Survey(index, tuple(records), {name: tuple(others) for name, others in wanted.items()})


def index_images(
    found: Survey, say: Callable[[str], None] = print, batch_images: int = 64, deadline_s: float = 600.0
) -> list[str]:
    """Read what is wanted and save the index. Needs a connection to Ray unless nothing is wanted.

    Args: batch_images: images of one task. deadline_s: for the next batch.
    Returns: "FILE: line N: item ID: reason" for every record whose image cannot be used, in file order.
    Raises: DataError if the index cannot be written; DeadlineError."""
    errors = {image: row.error for image, row in found.index.rows.items() if row.error is not None}
    if found.wanted:
        if not os.access(found.index.folder, os.W_OK):
            raise DataError(
                f"{found.index.folder}: wanted a folder that {found.index.file.name} can be written into; change its"
                " rights"
            )
        errors |= _read(found, say, batch_images, deadline_s)
    errors = {image: error for image, error in errors.items() if error is not None}
    return [f"{where}: {errors[image]}" for where, image in found.records if image in errors]


def _read(found: Survey, say: Callable[[str], None], batch_images: int, deadline_s: float) -> dict[str, str | None]:
    """Why each image that was read cannot be used, None if it can; the index is saved."""
    errors: dict[str, str | None] = {}
    done, total = 0, len(found.wanted)
    started = said = saved = time.monotonic()
    try:
        with closing(_looked_at(found.index.folder, list(found.wanted), batch_images, deadline_s)) as tables:
            for table in tables:
                rows = [named for row in rows_of(table) for named in _under_all_names(row, found.wanted[row.image])]
                found.index.update(rows)
                errors |= {row.image: row.error for row in rows}
                done += len(table)
                now = time.monotonic()
                if now - said >= SAY_S or done == total:
                    said, left_s = now, (now - started) / done * (total - done)
                    bad = sum(error is not None for error in errors.values())
                    say(f"read {done} of {total} files, {bad} images cannot be used, {duration(left_s)} left")
                if now - saved >= SAVE_S:
                    found.index.save()
                    saved = now
    finally:
        if done:  # also of a job that is stopped
            found.index.save()
    return errors


def _under_all_names(row: IndexedImage, others: Sequence[str]) -> Iterator[IndexedImage]:
    yield row
    for name in others:
        yield replace(row, image=name, error=None if row.error is None else row.error.replace(row.image, name, 1))


def _looked_at(folder: str, images: list[str], batch_images: int, deadline_s: float) -> Iterator[pa.Table]:
    """Tables of `image_index.SCHEMA`, one a batch, as they finish."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    # a block is what one dead worker costs
    blocks = [pa.table({"image": images[n : n + batch_images]}) for n in range(0, len(images), batch_images)]
    data = ray.data.from_arrow(blocks).map_batches(
        _look_at_batch, fn_args=(folder,), batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    tables = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return within((t for t in tables if len(t)), deadline_s, "the next batch of images", "raise --deadline-s")


def _look_at_batch(table: pa.Table, folder: str) -> pa.Table:
    return table_of(look_at(Path(folder), image) for image in table.column("image").to_pylist())
