"""Dense supervision for pre-training a vision tower on 64 x 64 scenes: what stands in each of 4 x 4 cells, and how
degraded the image is.

A cell is 16 x 16 pixels, one merged visual token of a tower with patch 8 and merge 2; cells are row-major (row 0 is the
sky). Finer grids are possible. An object belongs to the cell its center lies in. In rendered scenes only an overlapping
pair that is also cropped can share a cell: there the object nearer to the middle of the frame belongs to the next cell
towards the middle, so that every object has a cell of its own. What the verifier read in a generated image gives
targets of the same kind. Nothing here depends on the prompt.
"""

from __future__ import annotations

import numpy as np

from zr_ray.world.scene import COLORS, LEVELS, SHAPES, SIZE, SIZES, Scene
from zr_ray.world.verifier.reading import SceneReading

GRID = 4
CELL_CLASSES = {
    "presence": 2,  # 0 no object centered here, 1 object
    "shape": 1 + len(SHAPES),  # 0 no object, then SHAPES in order
    "color": 1 + len(COLORS),  # 0 no object, then COLORS in order
    "size": 1 + len(SIZES),  # 0 no object, then SIZES in order
    "floating": 4,  # 0 no object, 1 supported, 2 slight gap, 3 clear gap
    "shadow": 4,  # 0 no object, 1 casts none (upper one of a stack), 2 shadow to its left, 3 to its right
    "overlap": 3,  # 0 no object, 1 apart, 2 interpenetrates another object
}
"""Per-cell classification targets: name -> number of classes. Each is [cells] int64."""
IMAGE_CLASSES = {
    "light": 3,  # 0 sun on the left, 1 on the right, 2 no sun (never in a rendered scene)
    "objects": 4,  # number of objects, 0 (never in a rendered scene) to 3 and more
}
"""Image classification targets: name -> number of classes. Each is a scalar [] int64."""
LEVEL_NAMES = LEVELS
"""Order of the regression target "levels", [7] float32 in [0, 1]."""


def perception_targets(scene: Scene | SceneReading, grid: int = GRID) -> dict[str, np.ndarray]:
    """Targets of a rendered scene, or of a generated image by the verifier's reading.

    Args: grid: cells per side.
    Returns: for every key of CELL_CLASSES a [grid^2] int64 array of classes, for every key of IMAGE_CLASSES a [] int64
    class, and "levels" [7] float32, the degradation levels in the order of LEVEL_NAMES.
    """
    targets = {name: np.zeros(grid * grid, np.int64) for name in CELL_CLASSES}
    stray = getattr(scene, "extra", None)  # an extra object stands apart, whatever the asked-for ones do
    for item in sorted(scene.objects, key=lambda o: -abs(2 * o.x + 1 - SIZE)):
        row, column = (min(grid - 1, max(0, at * grid // SIZE)) for at in (item.y, item.x))
        if targets["presence"][row * grid + column]:
            column += 1 if column < grid // 2 else -1
        cell = row * grid + column
        targets["presence"][cell] = 1
        targets["shape"][cell] = 1 + SHAPES.index(item.shape)
        targets["color"][cell] = 1 + COLORS.index(item.color)
        targets["size"][cell] = 1 + SIZES.index(item.size)
        targets["floating"][cell] = 1 + item.floating
        targets["shadow"][cell] = {"": 1, "left": 2, "right": 3}[item.shadow]
        targets["overlap"][cell] = 1 + (scene.overlap and item is not stray)
    targets["light"] = np.asarray(("left", "right", "").index(scene.light))
    targets["objects"] = np.asarray(min(len(scene.objects), IMAGE_CLASSES["objects"] - 1))
    targets["levels"] = np.array([scene.levels[name] for name in LEVEL_NAMES], np.float32)
    return targets
