"""Grids of images by hand."""

import numpy as np
from PIL import Image

from zr_ray.report.image_grid import save_enlarged, tiled


def test_images_stand_row_by_row_and_gaps_are_black():
    images = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    images[1, 0, 2] = 99  # upper right pixel of the second image
    grid = tiled(images, columns=2)
    assert grid.shape == (6, 6, 3)
    assert grid[:, :, 0].tolist() == [
        [10] * 3 + [20, 20, 99],
        [10] * 3 + [20] * 3,
        *[[30] * 3 + [40] * 3] * 2,
        *[[50] * 3 + [0] * 3] * 2,
    ]


def test_a_saved_picture_is_twice_as_large_and_not_smoothed(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    save_enlarged(picture, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert (np.asarray(image) == picture.repeat(2, 0).repeat(2, 1)).all()
