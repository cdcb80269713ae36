"""A part of an image pool in one Parquet file, small enough to ship: lossless WebP beside what the verifier read.

Left out on purpose: noise seeds; `jobs/data/make_image_pool.py` makes whole pools again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from zr_ray.data.files import atomic_file
from zr_ray.errors import DataError
from zr_ray.world.image_pool import ImagePool, SamplingShare, scores_of, unpacked_reading

READING = ("objects", "levels", "light", "ground", "overlap")
GENERATED = Path(__file__).resolve().parents[1] / "assets" / "generated.parquet"
"""Images of the built-in generator for the default data: splits train (known prompts) and test (held-out ones)."""


def pack_pool(path: Path, parts: Mapping[str, tuple[ImagePool, Sequence[int]]]) -> None:
    """Write one file, atomically. parts: split -> (pool, images taken from it)."""
    rows = []
    for split, (pool, chosen) in parts.items():
        for index in chosen:
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(pool.images[index])).save(buffer, "WEBP", lossless=True, quality=60, method=4)
            how = pool.shares[pool.share[index]]
            reading = {name: getattr(pool, name)[index] for name in READING}
            rows.append(
                {"split": split, "prompt": pool.prompts[pool.prompt[index]], "image": buffer.getvalue()}
                | {"steps": how.steps, "guidance_scale": how.guidance_scale}
                | {name: np.asarray(value).reshape(-1).tolist() for name, value in reading.items()}
            )
    with atomic_file(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")


def unpack_pool(path: Path, split: str) -> ImagePool:
    """The images of one split. Raises: DataError if the file is no packed pool or holds none of it."""
    try:
        rows = pq.read_table(path, filters=[("split", "=", split)]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: wanted a packed pool, pyarrow says: {error}; make it again") from error
    if not rows:
        raise DataError(f"{path}: wanted images of split {split}, got none; name another split")
    prompts = tuple(dict.fromkeys(row["prompt"] for row in rows))
    shares = tuple(dict.fromkeys(SamplingShare(row["steps"], row["guidance_scale"], 1.0) for row in rows))
    objects = np.array([row["objects"] for row in rows], np.int8)
    objects = objects.reshape(len(rows), -1, 8)
    levels = np.array([row["levels"] for row in rows], np.float32)
    light, ground = (np.array([row[name][0] for row in rows], np.int8) for name in ("light", "ground"))
    overlap = np.array([row["overlap"][0] for row in rows], bool)
    reading = list(zip(objects, levels, light, ground, overlap, strict=True))
    return ImagePool(
        prompts,
        shares,
        np.stack([np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]),
        np.array([prompts.index(row["prompt"]) for row in rows]),
        np.array([shares.index(SamplingShare(row["steps"], row["guidance_scale"], 1.0)) for row in rows]),
        objects,
        levels,
        light,
        ground,
        overlap,
        np.array([scores_of(unpacked_reading(*r), row["prompt"]) for r, row in zip(reading, rows, strict=True)]),
    )
