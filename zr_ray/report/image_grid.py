"""Many small images as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ENLARGED = 2
"""Picture pixels per image pixel and side: 64x64 images are hard to see."""


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, 3] uint8 -> [ceil(N / columns) H, columns W, 3], row by row; what N leaves empty is black."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, 3), np.uint8)
    padded[:count] = images
    return padded.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def save_enlarged(picture: np.ndarray, path: Path) -> None:
    """Write [H, W, 3] uint8 as a PNG, `ENLARGED` times as large, without smoothing; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST).save(path)
