"""Images on their way: a file's bytes travel between processes, pixels are made where they are used.

A photograph of 1024 x 1024 has 3 MiB of pixels and about a tenth of that as a file. Questions about it therefore carry
the file (`EncodedImage`); the engine that answers them and the learner that trains on the answers decode it, each once:
a process keeps the pixels that it made last, up to `KEPT_BYTES`. What is decoded is what `load_image` gives of the
file, to the bit.
Left out on purpose: hashes of files as names of pixels on disk; `image_index.py` has those.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from zr_ray.data.images import MAX_PIXELS, configured_background, decode
from zr_ray.errors import DataError
from zr_ray.records import AnyImage, EncodedImage

KEPT_BYTES = 2**29
"""Decoded pixels that a process keeps: 170 images of 1024 x 1024, a step's on one rank (48 pairs are 96)."""
KEPT_SIZES = 2**16
"""Heights and widths that a process keeps, a hundred bytes each."""


def encoded_image(path: Path | str) -> EncodedImage:
    """An image file's bytes, not looked at.   Raises: DataError if the file cannot be read."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: wanted an image file, there is none; correct the path or add the file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: wanted a readable image file, got: {error}; correct path or rights") from error
    background = configured_background()
    key = hashlib.blake2b(bytes(background) + content, digest_size=16).hexdigest()
    return EncodedImage(content, str(path), background, key)


def pixels(image: AnyImage) -> np.ndarray:
    """[H, W, 3] uint8 RGB, read-only where it was decoded here; an array is returned as it is.

    Raises: DataError as `load_image`, where the file is decoded for the first time."""
    return image if isinstance(image, np.ndarray) else _KEPT.pixels(image)


def size(image: AnyImage) -> tuple[int, int]:
    """(height, width) in pixels, as `pixels` would give them.   Raises: DataError as `pixels`."""
    return _size(image) if isinstance(image, np.ndarray) else _KEPT.size(image)


class KeptPixels:
    """Pixels of the images that were used last, up to a number of bytes. Verbs: pixels, size."""

    def __init__(self, limit: int) -> None:
        """limit: bytes. One image that is larger is decoded at every use."""
        self._limit, self.held = limit, 0
        self._pixels: OrderedDict[str, np.ndarray] = OrderedDict()
        self._sizes: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def pixels(self, image: EncodedImage) -> np.ndarray:
        """As the function of this name."""
        with self._lock:
            found = self._pixels.get(image.key)
            if found is not None:
                self._pixels.move_to_end(image.key)
                return found
        made = decode(io.BytesIO(image.content), image.name, MAX_PIXELS, background=image.background).pixels
        made.flags.writeable = False  # shared by all who ask
        with self._lock:
            self._keep(image.key, made)
        return made

    def size(self, image: EncodedImage) -> tuple[int, int]:
        """As the function of this name; of an image that is no longer held its size still is."""
        with self._lock:
            found = self._sizes.get(image.key)
        # not from the header: a decoder may turn an image by what it finds behind its pixels (PNG), and a wrong size
        # would shift every position of the question
        return found or _size(self.pixels(image))

    def _keep(self, key: str, made: np.ndarray) -> None:
        self._sizes[key] = _size(made)
        if len(self._sizes) > KEPT_SIZES:
            self._sizes.popitem(last=False)
        if key in self._pixels or made.nbytes > self._limit:
            return
        self._pixels[key] = made
        self.held += made.nbytes
        while self.held > self._limit:
            self.held -= self._pixels.popitem(last=False)[1].nbytes


def _size(array: np.ndarray) -> tuple[int, int]:
    return int(array.shape[0]), int(array.shape[1])


_KEPT = KeptPixels(KEPT_BYTES)
