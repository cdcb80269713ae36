"""Pick-a-Pic v1 and v2 (Kirstain et al., arXiv 2305.01569): users' choices between two images of their own prompt; no
scores.

Source, read: the dataset card of huggingface.co/datasets/yuvalkirstain/pickapic_v1 (its dataset_info lists every column
and split) and github.com/yuvalkirstain/PickScore at f79607f (README, trainer/datasetss/clip_hf_dataset.py). Layout:
data/SPLIT-0000N-of-....parquet, SPLIT one of train, validation, test, validation_unique, test_unique; columns used:
caption, image_0_uid, image_1_uid, jpg_0, jpg_1 (encoded images), label_0, label_1 (1 and 0, or 0.5 each for a tie),
has_label, are_different.
Not verified: the card of v2. Public loaders read the same columns from it.

    overall <- the image with label 1; preferences without gaps
Splits: train -> train, validation -> dev, test -> test. The *_unique files are subsets: they are read only if the full
ones are absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zr_ray.data.adapters.conversion import Conversion, prompt_group
from zr_ray.data.adapters.fields import ADVICE, number, text
from zr_ray.data.adapters.sources import parquet_rows, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.preferences import OVERALL, Preference
from zr_ray.errors import DataError

SPLITS = {"train": "train", "validation": "dev", "test": "test", "validation_unique": "dev", "test_unique": "test"}
UIDS = ("image_0_uid", "image_1_uid")
COLUMNS = ("caption", *UIDS, "label_0", "label_1", "has_label", "are_different")
BYTES = ("jpg_0", "jpg_1")


def convert(source: Path, images: Path | None, root: Path, **options) -> Summary:
    """Convert Pick-a-Pic into preferences.

    Args: source: a Parquet file, or the folder of them. images: None when the files hold the images (jpg_0, jpg_1); for
    the version without images, a folder of <uid>.jpg or <uid>.png. options: those of `Conversion`.
    Raises: DataError."""
    to = Conversion("pickapic", images, root, **options)

    def parse(where: str, at: tuple[str, dict]) -> Preference | None:
        split, row = at
        prompt = text(row, "caption", where)
        uids = tuple(uid(row, name, where) for name in UIDS)
        labels = tuple(number(row, f"label_{side}", where, 0, 1) for side in (0, 1)) if row.get("has_label") else None
        if labels is None:
            return to.skip("no label", where)
        if sum(labels) != 1:
            raise DataError(f"{where}: wanted labels that sum to 1, got {labels}; {ADVICE}")
        if labels[0] == labels[1]:
            return to.skip("tie", where)
        if row.get("are_different") is False or uids[0] == uids[1]:
            return to.skip("both images are the same", where)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where):
            return None
        placed = [image(to, uids[side], row.get(BYTES[side]), where) for side in (0, 1)]
        if None in placed:
            return to.skip("pair without one of its images", where)
        winner, loser = placed if labels[0] > labels[1] else reversed(placed)
        return Preference(group, split, prompt, winner, loser, OVERALL, origin="pickapic")

    to.preferences(to.parsed(_rows(Path(source)), parse))
    return to.finish("one user's choice per pair; pairs of the same prompt may contradict one another")


def uid(row: dict, name: str, where: str) -> str:
    """An image's identifier, safe as a file name.   Raises: DataError."""
    value = text(row, name, where)
    if not value or not all(c.isalnum() or c in "-_" for c in value):
        raise DataError(f"{where}: wanted an identifier in {name!r}, got {value!r}; {ADVICE}")
    return value


def image(to: Conversion, name: str, data: bytes | None, where: str) -> Path | None:
    """The image of a row inside the output folder: from its bytes, else from the image folder; None, and counted, if
    neither has it."""
    if data:
        return to.readable(to.write_image(f"{name}.jpg", data), where)
    if to.images is None:
        raise DataError(
            f"{where}: wanted image bytes, or an image folder, for {name!r}, got neither; name the folder of <uid>.jpg"
            " files"
        )
    return to.place(f"{name}.png" if (to.images / f"{name}.png").is_file() else f"{name}.jpg", where)


def split_files(source: Path) -> list[tuple[str, Path]]:
    """(split of ours, file) of every Parquet file to read.   Raises: DataError if a file name names no split."""
    named = []
    for file in source_files(source, ("*.parquet",)):
        name = file.name.split("-")[0].removesuffix(".parquet")
        if name not in SPLITS:
            raise DataError(f"{file}: wanted a name that starts with {', '.join(SPLITS)}, got {file.name!r}; rename it")
        named.append((name, file))
    there = {name for name, _ in named}
    return [
        (SPLITS[name], file)
        for name, file in named
        if not (name.endswith("_unique") and name.removesuffix("_unique") in there)
    ]


def find_images(source: Path, wanted: set[str]) -> Iterator[tuple[str, str, bytes | None]]:
    """(uid, caption, encoded image or None) of the wanted images, each once. Image columns are read only where a wanted
    image is.

    Raises: DataError if a file lacks the columns or is no Parquet file."""
    left = set(wanted)
    for _, file in split_files(source):
        try:
            with pq.ParquetFile(file) as table:
                missing = [name for name in ("caption", *UIDS) if name not in table.schema_arrow.names]
                if missing:
                    raise DataError(
                        f"{file}: wanted the columns of Pick-a-Pic, missing {', '.join(missing)}; name its Parquet"
                        " files"
                    )
                held = [name for name in BYTES if name in table.schema_arrow.names]
                for part in range(table.num_row_groups):
                    rows = table.read_row_group(part, columns=["caption", *UIDS]).to_pylist()
                    found = [(n, side) for n, row in enumerate(rows) for side in (0, 1) if row[UIDS[side]] in left]
                    data = table.read_row_group(part, columns=held) if found and held else None
                    for n, side in found:
                        name = rows[n][UIDS[side]]
                        if name in left:
                            left.remove(name)
                            yield (
                                name,
                                rows[n]["caption"] or "",
                                data[BYTES[side]][n].as_py() if BYTES[side] in held else None,
                            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: wanted a Parquet file, pyarrow says: {error}; download the file again") from error


def _rows(source: Path) -> Iterator[tuple[str, tuple[str, dict]]]:
    for split, file in split_files(source):
        for where, row in parquet_rows(file, COLUMNS, BYTES):
            yield where, (split, row)
