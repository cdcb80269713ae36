"""Image files to pixel arrays: the one decoder of loader and service, with limits checked before anything large is
decoded.

One list of formats (`FORMATS`). What a picture needs before it is RGB happens here and nowhere else, so a judge sees
the same pixels in training and serving: EXIF orientation is applied, transparent pixels are composited on white (hidden
colors under alpha 0 would be shown otherwise), of an animated or multi-page file the first frame is used. Another
background than white is a matter of the whole installation: ZR_RAY_BACKGROUND=R,G,B in the environment of driver,
workers and service. Whatever a library raises on a file becomes a `DataError` of that file.
Left out on purpose: color profiles (an embedded ICC profile is ignored, the numbers are taken as sRGB) and 16-bit
channels.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage

MAX_PIXELS = 16_000_000
"""Default limit of width x height: 4000 x 4000. A larger header is taken for a mistake or a decompression bomb."""

FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
"""Formats that are read, by Pillow's name -> media type. Pillow knows forty more; some of them start programs (EPS)."""

WHITE = (255, 255, 255)
"""What transparent pixels are composited on: the page on which people saw the image when they rated it."""

BACKGROUND_VARIABLE = "ZR_RAY_BACKGROUND"
"""Environment variable with another background, three numbers from 0 to 255."""

UNREADABLE_EXIF = "EXIF orientation unreadable, image used unrotated"
TRANSPARENT = "transparent pixels, composited on the background"
FIRST_FRAME = "animated or several pages, first frame used"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it; 1 is upright, 0 is written by some cameras for "unknown"."""

_EXIF_DAMAGE = re.compile(r"Truncated File Read|orrupt EXIF data(?!.*Skipping tag)|Skipping tag 274\b")
"""Warnings of Pillow after which the orientation (tag 274) may have been there."""

_STRANGERS = (
    (rb"version https://git-lfs", "a Git LFS pointer: fetch the file itself (git lfs pull)"),
    (rb"\s*<(!doctype html|html|head)", "an HTML page: the download was answered by a web page"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", "SVG"),
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "a video (MP4 or QuickTime)"),
    (rb"\xff\x0a|....JXL ", "JPEG XL"),
    (rb"....jP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"8BPS", "PSD"),
    (rb"%PDF|%!PS", "PDF or PostScript"),
    (rb"P[1-7]\s", "PNM"),
    (rb"\x00\x00\x01\x00", "ICO"),
    (rb"\x1aE\xdf\xa3", "a video (WebM or Matroska)"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"\s*[{\[]", "JSON or other text"),
)
"""Start of a file that is no image we read -> what to call it: the most common ones where images were expected."""


class ImageTooLarge(DataError):
    """More pixels than asked for, by the header; nothing was decoded."""


@dataclass(frozen=True)
class DecodedImage:
    """An image file as a judge sees it."""

    pixels: np.ndarray
    """[H, W, 3] uint8 RGB."""
    notes: tuple[str, ...] = ()
    """What was done beyond decoding that people may want counted: UNREADABLE_EXIF, TRANSPARENT, FIRST_FRAME."""


def load_image(path: Path | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of an image file. Only the header is read before the size check.

    Returns: [H, W, 3] uint8 RGB.   Raises: DataError if the file is missing, undecodable, of a format that is not in
    FORMATS, not 8 bits a channel, or too large."""
    return decode(path, str(path), max_pixels).pixels


def decode_image(
    source: Path | str | BinaryIO, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = tuple(FORMATS)
) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a file or of bytes in memory; arguments and errors as `decode`."""
    return decode(source, name, max_pixels, formats).pixels


def decode(
    source: Path | str | BinaryIO,
    name: str,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = tuple(FORMATS),
    background: tuple[int, int, int] | None = None,
) -> DecodedImage:
    """Pixels and notes of an image file, or of bytes in memory.

    Args: name: what errors call the image. max_pixels: of width x height. formats: names of FORMATS. background: RGB
    that transparent pixels are composited on; None: `configured_background`.
    Raises: ImageTooLarge, or another DataError; nothing else, whatever the bytes are. ConfigError for a background that
    is none."""
    background = configured_background() if background is None else background
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # kept from the log: our size limit is the stricter one, and see `_turn`
            with Image.open(source, formats=formats) as image:
                _check_header(image, name, max_pixels)
                image.load()
                _check_header(image, name, max_pixels)  # a TIFF may turn, a damaged file may change its mind
                return _as_seen(image, background, [str(warning.message) for warning in said])
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: wanted an image file, there is none; correct the path or add the file") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            f"{name}: wanted at most {max_pixels} pixels, got a decompression bomb ({error}); remove the image"
        ) from error
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{name}: wanted an image in one of the formats {', '.join(formats)}, got {_stranger(source)}; convert it"
            " to PNG, or remove it"
        ) from None
    except Exception as error:  # a damaged file raises anything: struct.error, TypeError, KeyError, ...
        raise DataError(
            f"{name}: wanted a decodable image, Pillow says: {error or type(error).__name__}; write the file again or"
            " remove its record"
        ) from error


def configured_background() -> tuple[int, int, int]:
    """RGB of the environment variable, white without it.   Raises: ConfigError."""
    text = os.environ.get(BACKGROUND_VARIABLE)
    if text is None:
        return WHITE
    values = tuple(int(part) if part.strip().isdecimal() else -1 for part in text.split(","))
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ConfigError(f"{BACKGROUND_VARIABLE} must be three numbers from 0 to 255, as 255,255,255, got {text!r}")
    return values


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{name}: wanted at most {max_pixels} pixels, got {image.width} x {image.height}; "
            "scale the image down or raise max_pixels"
        )
    if image.width < 1 or image.height < 1:
        raise DataError(f"{name}: wanted at least one pixel, got {image.width} x {image.height}; remove the image")
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name}: wanted 8 bits a channel, got Pillow mode {image.mode}; convert the image to 8-bit RGB"
        )


def _as_seen(image: Image.Image, background: tuple[int, int, int], said: Sequence[str]) -> DecodedImage:
    """A loaded image as RGB, turned upright, on the background. said: Pillow's warnings."""
    notes = []
    turn, readable = _turn(image, said)
    if not readable:
        notes.append(UNREADABLE_EXIF)
    seen = image
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if with_alpha.getextrema()[3][0] < 255:
            notes.append(TRANSPARENT)
            seen = Image.new("RGBA", with_alpha.size, (*background, 255))
            seen.alpha_composite(with_alpha)
    seen = seen.convert("RGB")
    if turn is not None:
        seen = seen.transpose(turn)
    pixels = np.asarray(seen)
    if _several_frames(image):  # last: it may move to another frame
        notes.append(FIRST_FRAME)
    return DecodedImage(pixels, tuple(notes))


def _turn(image: Image.Image, said: Sequence[str]) -> tuple[Image.Transpose | None, bool]:
    """(what makes the image upright, whether the orientation could be read). Cameras and editors write broken EXIF."""
    if image.format == "TIFF":  # its orientation is applied by Pillow while it loads
        return None, True
    try:
        orientation = image.getexif().get(0x0112)
        if orientation is None:  # none there, or one that Pillow skipped: only a warning tells
            return None, not ("exif" in image.info and any(map(_EXIF_DAMAGE.search, said)))
        return _TURNS.get(orientation), orientation in range(9)
    except Exception:  # broken EXIF raises anything, and says nothing of the pixels
        return None, False


def _several_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # damage behind the first frame
        return True


def _stranger(source: Path | str | BinaryIO) -> str:
    """What a file that no reader knows seems to be."""
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                head = file.read(512)
        else:
            source.seek(0, io.SEEK_SET)
            head = source.read(512)
    except (OSError, ValueError):
        return "something unreadable"
    if not head:
        return "an empty file"
    return next(
        (what for start, what in _STRANGERS if re.match(start, head, re.DOTALL | re.IGNORECASE)),
        f"other data (it starts with {head[:12]!r})",
    )


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
