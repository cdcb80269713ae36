"""Image files to pixel arrays, with limits checked before anything large is decoded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage

MAX_PIXELS = 16_000_000
"""Default limit of width x height: 4000 x 4000. A larger header is taken for a mistake or a decompression bomb."""


class ImageTooLarge(DataError):
    """More pixels than asked for, by the header; nothing was decoded."""


def load_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file. Only the header is read before the size check; EXIF rotation is applied, transparency
    dropped.

    Returns: [H, W, 3] uint8 RGB.   Raises: DataError if the file is missing, undecodable, not 8 bits a channel, or too
    large.
    """
    try:
        return decode_image(path, str(path), max_pixels)
    except FileNotFoundError as error:
        raise DataError(f"{path}: wanted an image file, there is none; correct the path or add the file") from error


def decode_image(
    source: Path | str | BinaryIO, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> np.ndarray:
    """The same for an open file or bytes in memory, of the given Pillow formats only. `name` stands in the errors.

    Raises: ImageTooLarge, or another DataError; FileNotFoundError for a path that is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit below is the stricter one
            with Image.open(source, formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise ImageTooLarge(
                        f"{name}: wanted at most {max_pixels} pixels, got {image.width} x {image.height}; "
                        "scale the image down or raise max_pixels"
                    )
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{name}: wanted 8 bits a channel, got Pillow mode {image.mode}; convert the image to 8-bit RGB"
                    )
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            f"{name}: wanted at most {max_pixels} pixels, got a decompression bomb ({error}); remove the image"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"{name}: wanted a decodable image, Pillow says: {error}; write the file again or remove its record"
        ) from error


def check_images(items: Iterable[AnnotatedImage], max_pixels: int = MAX_PIXELS) -> int:
    """Decode every item's image once. Returns: number of images checked.   Raises: DataError naming item and file."""
    count = 0
    for item in items:
        try:
            load_image(item.image, max_pixels)
        except DataError as error:
            raise DataError(f"item {item.id!r}: {error}") from error
        count += 1
    return count
