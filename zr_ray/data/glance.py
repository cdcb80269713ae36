"""Looking at an image file without decoding it: what a large data set is checked by at the start of a run.

A header tells size and format, the file's size and its first bytes tell whether it is the same file as another, or as
yesterday. Damage behind the header is found where the image is decoded: in the sample that a run decodes at its start,
and otherwise when a judge is asked about it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from zr_ray.data.images import FORMATS, MAX_PIXELS, ImageTooLarge
from zr_ray.errors import DataError

HEAD = 16384
"""Bytes of a file that are read: the headers of nearly every file, and enough to tell two pictures apart."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


def glance(path: Path) -> tuple[int, int, str]:
    """(height, width, 32 hex digits of the file's size and beginning). Raises DataError if the header is none."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEAD)
    digest = head_hash(size, head)
    try:
        height, width = _size(io.BytesIO(head))
    except Exception:  # a header longer than HEAD, or none: the whole file says which
        try:
            with open(path, "rb") as whole:
                height, width = _size(whole)
        except Exception as error:
            raise DataError(
                f"{path}: wanted an image in one of the formats {', '.join(FORMATS)}, its header is none"
                f" ({type(error).__name__}); write the file again or remove its record"
            ) from error
    if height * width > MAX_PIXELS:
        raise ImageTooLarge(f"{path}: wanted at most {MAX_PIXELS} pixels, got {width} x {height}; scale it down")
    return height, width, digest


def head_hash(size: int, head: bytes) -> str:
    """32 hex digits of a file by its size and its first HEAD bytes."""
    return hashlib.blake2b(f"{size}:".encode() + head, digest_size=16).hexdigest()


def _size(file) -> tuple[int, int]:
    with Image.open(file, formats=tuple(FORMATS)) as image:
        width, height = image.size
        # Pillow turns a TIFF itself; a PNG without EXIF in front would be decoded to look for one behind the pixels
        turned = image.format != "TIFF" and "exif" in image.info and image.getexif().get(0x0112) in SIDEWAYS
    return (width, height) if turned else (height, width)


def sample_to_decode(pixels: Sequence[int], budget: int) -> set[int]:
    """Indices of an even sample of images whose pixels together are at most `budget`, or all if they all are."""
    total = sum(pixels)
    if total <= budget:
        return set(range(len(pixels)))
    count = max(1, len(pixels) * budget // total)
    return {n * len(pixels) // count for n in range(count)}
