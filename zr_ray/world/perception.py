"""Dense supervision for pre-training a vision tower on 64 x 64 scenes: what stands in each of 4 x 4 cells, and how
degraded the image is.

A cell is 16 x 16 pixels, one merged visual token of a tower with patch 8 and merge 2; cells are row-major (row 0 is the
sky). An object belongs to the cell its centre lies in. Only an overlapping pair that is also cropped can share a cell:
there the object nearer to the middle of the frame belongs to the next cell towards the middle, so that every object has
a cell of its own. Nothing here depends on the prompt.
"""

from __future__ import annotations

import numpy as np

from zr_ray.world.scene import COLOURS, LEVELS, SHAPES, SIZE, SIZES, Scene

GRID = 4
CELLS = GRID * GRID
CELL_CLASSES = {
    "presence": 2,  # 0 no object centred here, 1 object
    "shape": 1 + len(SHAPES),  # 0 no object, then SHAPES in order
    "colour": 1 + len(COLOURS),  # 0 no object, then COLOURS in order
    "size": 1 + len(SIZES),  # 0 no object, then SIZES in order
    "floating": 4,  # 0 no object, 1 supported, 2 slight gap, 3 clear gap
    "shadow": 4,  # 0 no object, 1 casts none (upper one of a stack), 2 shadow to its left, 3 to its right
    "overlap": 3,  # 0 no object, 1 apart, 2 interpenetrates another object
}
"""Per-cell classification targets: name -> number of classes. Each is [16] int64."""
IMAGE_CLASSES = {"light": 2, "objects": 4}  # 0 sun on the left, 1 on the right  # number of objects, 1 to 3
"""Image classification targets: name -> number of classes. Each is a scalar [] int64."""
LEVEL_NAMES = LEVELS
"""Order of the regression target "levels", [7] float32 in [0, 1]."""


def perception_targets(scene: Scene) -> dict[str, np.ndarray]:
    """Targets of one scene.

    Returns: for every key of CELL_CLASSES an [16] int64 array of classes, for every key of IMAGE_CLASSES a [] int64
    class, and "levels" [7] float32, the degradation levels in the order of LEVEL_NAMES.
    """
    targets = {name: np.zeros(CELLS, np.int64) for name in CELL_CLASSES}
    for item in sorted(scene.objects, key=lambda o: -abs(2 * o.x + 1 - SIZE)):
        row, column = (min(GRID - 1, max(0, at * GRID // SIZE)) for at in (item.y, item.x))
        if targets["presence"][row * GRID + column]:
            column += 1 if column < GRID // 2 else -1
        cell = row * GRID + column
        targets["presence"][cell] = 1
        targets["shape"][cell] = 1 + SHAPES.index(item.shape)
        targets["colour"][cell] = 1 + COLOURS.index(item.colour)
        targets["size"][cell] = 1 + SIZES.index(item.size)
        targets["floating"][cell] = 1 + item.floating
        targets["shadow"][cell] = {"": 1, "left": 2, "right": 3}[item.shadow]
        targets["overlap"][cell] = 1 + (scene.overlap and item is not scene.extra)
    targets["light"] = np.asarray(int(scene.light == "right"))
    targets["objects"] = np.asarray(len(scene.objects))
    targets["levels"] = np.array([scene.levels[name] for name in LEVEL_NAMES], np.float32)
    return targets
