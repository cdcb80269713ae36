"""Probes: good scenes are good, the others are not, by the verifier; and the pictures are what their names say."""

import numpy as np

from zr_ray.rubric import DIMENSIONS
from zr_ray.world.probes import PROBES, probe_images, with_grid
from zr_ray.world.verifier.reading import read_scene
from zr_ray.world.verifier.scores import verify


def test_the_verifier_tells_good_scenes_from_every_other_probe():
    prompts, pictures = probe_images(12, seed=1)
    mean = {
        name: np.mean([list(verify(i, p).values()) for i, p in zip(pictures[name], prompts, strict=True)], 0)
        for name in PROBES
    }
    assert (mean["good scene"] >= 4.8).all()
    for name in ("noise", "flat color", "checkerboard"):
        assert (mean[name] == 1).all(), name
    assert mean["blobs"][DIMENSIONS.index("alignment")] < 2
    realism = DIMENSIONS.index("realism")
    assert mean["grid over scene"][realism] < mean["good scene"][realism] - 0.3
    assert all(not read_scene(image).objects for image in pictures["noise"])


def test_pictures_by_hand():
    _, pictures = probe_images(6, seed=2)
    assert all((image == image[0, 0]).all() for image in pictures["flat color"])
    assert len({image[0, 0].tobytes() for image in pictures["flat color"]}) > 1
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) == 2 for image in pictures["checkerboard"])
    gridded = with_grid(np.full((1, 64, 64, 3), 100, np.uint8))[0, :, :, 0]
    assert (gridded[0, 0], gridded[0, 1], gridded[1, 0], gridded[1, 1], gridded[8, 8]) == (180, 140, 140, 100, 180)
    again = probe_images(6, seed=2)[1]
    assert all((pictures[name] == again[name]).all() for name in PROBES)
