"""The simulated world's scenes: pixels, true scores by hand, chains that agree with the scene, targets, sampling."""

from itertools import islice

import numpy as np
import pytest

from zr_ray.rubric import DIMENSIONS
from zr_ray.world import (
    perception_targets,
    reasoning_chains,
    render,
    sample_candidates,
    sample_group,
    true_scores,
    vocabulary,
)
from zr_ray.world.perception import CELL_CLASSES, IMAGE_CLASSES
from zr_ray.world.reasoning import FLOAT_WORDS, level_word
from zr_ray.world.scene import FLOAT_GAP, LEVELS, OVERLAP_PIXELS, Asked, Layout, Request, place
from zr_ray.world.truth import PENALTY

CIRCLE, SQUARE = Asked("small", "red", "circle"), Asked("big", "blue", "square")
REQUEST = Request(CIRCLE, SQUARE, "left")


def scene(first=CIRCLE, second=SQUARE, extra=None, relation="left", light="left", **changes):
    return place(first, second, extra, relation, light=light, seed=3, **changes)


def candidates(count, seed=0):
    return list(islice(sample_candidates(seed), count))


def test_prompts_are_words_between_single_spaces():
    assert REQUEST.prompt == "small red circle left of big blue square"
    assert Request(CIRCLE, SQUARE, "under").prompt == "small red circle under big blue square"
    assert Request(CIRCLE).prompt == "small red circle"


STRAY = Asked("small", "yellow", "triangle")
DEFECTS = {
    # name: (scene arguments, dimension, true score by hand)
    "size": ({"second": Asked("small", "blue", "square")}, "alignment", 4.25),
    "color": ({"first": Asked("small", "green", "circle")}, "alignment", 3.75),
    "shape": ({"first": Asked("small", "red", "cross")}, "alignment", 3.75),
    "relation": ({"relation": "on"}, "alignment", 3.5),
    "mirrored": ({"relation": "right"}, "alignment", 3.5),
    "missing": ({"second": None}, "alignment", 3.0),
    "extra": ({"extra": STRAY}, "alignment", 4.0),
    "slight float": ({"floating": 1}, "plausibility", 4.0),
    "clear float": ({"floating": 2}, "plausibility", 3.25),
    "shadow": ({"shadow_wrong": True}, "plausibility", 3.75),
    "overlap": ({"overlap": True}, "plausibility", 3.5),
    "noise": ({"levels": {"noise": 0.2}}, "realism", 4.65),
    "blur": ({"levels": {"blur": 0.2}}, "realism", 4.65),
    "blocks": ({"levels": {"blocks": 0.2}}, "realism", 4.7),
    "clash": ({"levels": {"clash": 0.2}}, "aesthetics", 4.7),
    "clutter": ({"levels": {"clutter": 0.2}}, "aesthetics", 4.72),
    "dimming": ({"levels": {"dimming": 0.2}}, "aesthetics", 4.7),
    "cropping": ({"levels": {"cropping": 0.2}}, "aesthetics", 4.72),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_costs_its_dimension_only_and_is_seen(name):
    changes, dimension, score = DEFECTS[name]
    clean, bad = scene(), scene(**changes)
    assert true_scores(REQUEST, clean) == dict.fromkeys(DIMENSIONS, 5.0)
    assert true_scores(REQUEST, bad) == pytest.approx(dict.fromkeys(DIMENSIONS, 5.0) | {dimension: score})
    changed = np.abs(render(clean).astype(int) - render(bad)).max(-1) > 12  # gray levels a person notices
    assert changed.sum() >= 20, f"only {changed.sum()} pixels show it"
    before, after = reasoning_chains(REQUEST, clean), reasoning_chains(REQUEST, bad)
    assert [d for d in DIMENSIONS if before[d] != after[d]] == [dimension]


def test_penalties_add_up_and_stop_at_one():
    worst = scene(Asked("big", "green", "circle"), Asked("small", "blue", "triangle"), STRAY, "on")
    assert true_scores(REQUEST, worst)["alignment"] == 1.0  # 5 - .75 - 1.25 - .75 - 1.25 - 1.5 - 1 < 1
    broken = scene(
        floating=2, shadow_wrong=True, overlap=True, levels={"noise": 1.0, "blur": 0.5, "dimming": 1.0, "clash": 0.5}
    )
    truth = true_scores(REQUEST, broken)
    assert truth["plausibility"] == 1.0  # 5 - 1.75 - 1.25 - 1.5 = .5
    assert truth["realism"] == pytest.approx(5 - 1.75 - 0.875)
    assert truth["aesthetics"] == pytest.approx(5 - 1.5 - 0.75)


def test_more_of_a_degradation_changes_more():
    clean = render(scene()).astype(float)
    for name in LEVELS[:-1]:  # cropping moves things: its pixels do not grow with the level
        errors = [np.abs(render(scene(levels={name: level})) - clean).mean() for level in (0.2, 0.6, 1.0)]
        assert errors[0] < errors[1] < errors[2], name


def test_chains_by_hand():
    levels = {"blur": 0.8, "noise": 0.3, "dimming": 0.5}
    seen = scene(Asked("small", "blue", "circle"), SQUARE, None, "right", shadow_wrong=True, floating=1, levels=levels)
    assert reasoning_chains(REQUEST, seen) == {
        "alignment": "a small ok blue bad circle ok b big ok blue ok square ok relation right bad extra no",
        "realism": "noise low blur high blocks none",
        "aesthetics": "clash none clutter none dim mid crop none",
        "plausibility": "light left shadow left bad float low overlap no",
    }
    missing = reasoning_chains(REQUEST, scene(None, SQUARE, light="right"))
    assert missing["alignment"] == "a missing b big ok blue ok square ok relation none extra no"
    assert missing["plausibility"] == "light right shadow left ok float none overlap no"
    assert [level_word(level) for level in (0, 0.2, 0.44, 0.45, 0.71, 0.72, 1)] == [
        "none",
        "low",
        "low",
        "mid",
        "mid",
        "high",
        "high",
    ]


def test_the_chain_alone_gives_the_discrete_scores():
    """Reads the words back, with no access to the scene, and finds the true alignment and plausibility."""
    for candidate in candidates(400):
        words = candidate.reasoning["alignment"].split()
        penalty = PENALTY["missing"] * words.count("missing") + PENALTY["extra"] * (words[-1] == "yes")
        for part in "a", "b":
            if part in words and words[words.index(part) + 1] != "missing":
                verdicts = words[words.index(part) + 2 : words.index(part) + 7 : 2]
                penalty += sum(
                    PENALTY[n] for n, v in zip(("size", "color", "shape"), verdicts, strict=True) if v == "bad"
                )
        penalty += PENALTY["relation"] * ("relation" in words and words[words.index("relation") + 2] == "bad")
        assert candidate.truth["alignment"] == max(1.0, 5 - penalty), candidate
        words = candidate.reasoning["plausibility"].split()
        assert (words[1] == words[3]) == (words[4] == "bad")
        penalty = (
            PENALTY["floating"][FLOAT_WORDS.index(words[6])] + 1.25 * (words[4] == "bad") + 1.5 * (words[8] == "yes")
        )
        assert candidate.truth["plausibility"] == max(1.0, 5 - penalty), candidate


def test_vocabulary_is_closed_and_chains_are_short():
    words = set()
    for candidate in candidates(3000):
        for text in (candidate.prompt, *candidate.reasoning.values()):
            assert text == " ".join(text.split()) == text.lower() and len(text.split()) <= 19
            words |= set(text.split())
    assert words == set(vocabulary()) and len(vocabulary()) == len(words)
    assert not any(any(letter.isdigit() for letter in word) for word in words), "no score may leak into a chain"


def test_same_seed_same_stream_same_pixels():
    one, two = candidates(40, seed=7), candidates(40, seed=7)
    assert one == two
    assert all(np.array_equal(render(a.scene), render(b.scene)) for a, b in zip(one, two, strict=True))
    assert [c.scene for c in candidates(40, seed=8)] != [c.scene for c in one]
    image = render(one[0].scene)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8


def test_groups_share_the_prompt_and_differ_in_the_picture():
    group = sample_group(np.random.default_rng(0), 6)
    assert len({c.prompt for c in group}) == 1 and len({render(c.scene).tobytes() for c in group}) == 6
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        sample_group(np.random.default_rng(0), 0)


def test_dimensions_are_independent_and_equally_spread():
    truth = np.array([[c.truth[d] for d in DIMENSIONS] for c in candidates(6000)])
    correlation = np.corrcoef(truth.T)[~np.eye(4, dtype=bool)]
    assert np.abs(correlation).max() < 0.06  # 0 within 4 standard errors of about .013
    assert np.all((truth.std(0) > 0.9) & (truth.std(0) < 1.1)) and np.all((truth.mean(0) > 2.9) & (truth.mean(0) < 3.8))


def test_asked_for_objects_stay_recognizable():
    for candidate in candidates(2000, seed=1):
        request, drawn = candidate.request, candidate.scene
        if request.second is None:
            continue
        for asked, other, seen in (
            (request.first, request.second, drawn.first),
            (request.second, request.first, drawn.second),
        ):
            if seen is not None:
                assert seen.shape == asked.shape or seen.color == asked.color
                assert seen.shape != other.shape and seen.color != other.color
        if drawn.extra is not None:
            assert drawn.extra.color not in (request.first.color, request.second.color)


def test_objects_stand_where_the_relation_says():
    for candidate in candidates(2000, seed=2):
        first, second, relation = candidate.scene.first, candidate.scene.second, candidate.scene.relation
        if relation in ("left", "right"):
            assert (first.x < second.x) == (relation == "left")
        elif relation:
            upper, lower = (first, second) if relation == "on" else (second, first)
            air = FLOAT_GAP[upper.floating] - OVERLAP_PIXELS * candidate.scene.overlap
            assert upper.x == lower.x and lower.y - upper.y == lower.half + 1 + upper.half + air
        for item in candidate.scene.objects:
            assert 0 <= item.x < 64, "at most half of an object is cut off"
            assert item.base == candidate.scene.ground - 1 or item.floating or relation or item is candidate.scene.extra


def test_perception_targets_by_hand():
    targets = perception_targets(scene(floating=2, levels={"blur": 0.5}, layout=Layout(floater=1)))
    # circle center (22, 36) -> row 2, column 1; square floats 8 pixels: center (41, 25) -> row 1, column 2
    assert np.flatnonzero(targets["presence"]).tolist() == [6, 9]
    assert (targets["shape"][9], targets["color"][9], targets["size"][9], targets["floating"][9]) == (1, 1, 1, 1)
    assert (targets["shape"][6], targets["color"][6], targets["size"][6], targets["floating"][6]) == (2, 3, 2, 3)
    assert targets["shadow"][[6, 9]].tolist() == [3, 3] and targets["overlap"][[6, 9]].tolist() == [1, 1]
    assert targets["light"] == 0 and targets["objects"] == 2
    assert targets["levels"].tolist() == [0, 0.5, 0, 0, 0, 0, 0]
    stack = perception_targets(scene(relation="on", overlap=True, light="right"))
    assert (
        stack["shadow"][stack["presence"] == 1].tolist() == [1, 2]
        and stack["overlap"].max() == 2
        and stack["light"] == 1
    )


def test_every_object_has_a_cell_of_its_own_and_classes_fit():
    for candidate in candidates(3000, seed=3):
        targets = perception_targets(candidate.scene)
        assert targets["presence"].sum() == len(candidate.scene.objects) == targets["objects"]
        for name, classes in CELL_CLASSES.items():
            assert targets[name].shape == (16,) and targets[name].dtype == np.int64 and targets[name].max() < classes
            assert name == "presence" or np.array_equal(targets[name] > 0, targets["presence"] > 0)
        assert all(targets[name] < classes for name, classes in IMAGE_CLASSES.items())
        assert targets["levels"].dtype == np.float32 and targets["levels"].max() <= 1


def test_impossible_placements_are_refused():
    for changes in ({"second": None}, {"relation": "on", "floating": 1}):
        with pytest.raises(ValueError, match="overlap needs two objects"):
            scene(overlap=True, **changes)


def test_rendering_leaves_the_scene_and_the_caller_s_random_numbers_alone():
    """A pure function of the scene: the same pixels in any order, numpy's global generator untouched."""
    drawn = candidates(40, seed=5)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = [render(candidate.scene) for candidate in drawn]
    again = [render(candidate.scene) for candidate in reversed(drawn)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({picture.tobytes() for picture in first}) == len(first)
    assert np.array_equal(before, np.random.get_state()[1])
