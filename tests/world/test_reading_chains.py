"""Chains of what the verifier read: on flawless and faulty rendered scenes they say what the oracle says."""

from dataclasses import replace

import numpy as np

from zr_ray.world.perception import perception_targets
from zr_ray.world.prompts import edited
from zr_ray.world.reading_chains import mirrored_reading, mirrored_request, reading_chains, scene_reading
from zr_ray.world.render import render
from zr_ray.world.sampling import sample_group
from zr_ray.world.scene import Asked, Request, place
from zr_ray.world.verifier.reading import read_scene
from zr_ray.world.verifier.scores import alignment_score

RED, BLUE = Asked("small", "red", "circle"), Asked("big", "blue", "square")


def test_a_rendered_scene_as_a_reading_has_the_oracles_chains():
    rng = np.random.default_rng(0)
    same = [
        reading_chains(c.request, scene_reading(c.scene)) == c.reasoning
        for c in (c for _ in range(40) for c in sample_group(rng))
    ]
    # a wrong object can be paired another way than it was drawn, an offset stack read another way: not all, but nearly
    assert np.mean(same) > 0.9


def test_chains_by_hand():
    scene = place(RED, BLUE, None, "left", light="left")
    wanted = Request(RED, replace(BLUE, color="green"), "right")
    chains = reading_chains(wanted, scene_reading(scene))
    assert chains["alignment"] == ("a small ok red ok circle ok b big ok blue bad square ok relation left bad extra no")
    assert chains["plausibility"] == "light left shadow right ok float none overlap no"
    empty = read_scene(np.full((64, 64, 3), 90, np.uint8))
    assert reading_chains(wanted, empty)["alignment"] == "a missing b missing relation none extra no"


def test_a_pixel_mirror_reads_as_the_mirrored_reading():
    scene = place(RED, BLUE, None, "left", light="left", floating=2)
    image = render(scene)
    mirrored, reading = mirrored_reading(read_scene(image)), read_scene(np.ascontiguousarray(image[:, ::-1]))
    assert mirrored.light == reading.light == "right" and mirrored.relations == reading.relations
    for a, b in zip(mirrored.objects, reading.objects, strict=True):
        assert (a.size, a.color, a.shape, a.shadow, a.floating) == (b.size, b.color, b.shape, b.shadow, b.floating)
    assert mirrored_request(Request(RED, BLUE, "left")).prompt == "small red circle right of big blue square"
    assert mirrored_request(Request(RED, BLUE, "on")) == Request(RED, BLUE, "on")


def test_an_edit_of_a_flawless_scene_costs_alignment():
    rng = np.random.default_rng(3)
    request = Request(RED, BLUE, "left")
    reading = scene_reading(place(RED, BLUE, None, "left", light="left"))
    assert alignment_score(reading, request.prompt) == 5.0
    assert all(alignment_score(reading, edited(request, rng).prompt) <= 4.25 for _ in range(50))


def test_perception_targets_of_a_reading_and_on_a_finer_grid():
    scene = place(RED, BLUE, None, "left", light="right")
    drawn, read = perception_targets(scene), perception_targets(read_scene(render(scene)))
    for name in ("presence", "shape", "color", "size", "floating", "shadow", "overlap", "light", "objects"):
        assert np.array_equal(drawn[name], read[name]), name
    fine = perception_targets(scene, 8)
    assert len(fine["presence"]) == 64 and fine["presence"].sum() == 2
    nothing = perception_targets(read_scene(np.full((64, 64, 3), 90, np.uint8)))
    assert nothing["presence"].sum() == 0 and nothing["objects"] == 0 and nothing["light"] == 2
