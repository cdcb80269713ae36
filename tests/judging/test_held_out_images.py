"""Looks at held-out images: paired differences and their intervals, distances, best of two, files."""

import numpy as np
import pytest

from zr_ray.judging.held_out_images import Look, best_of, compare, independent_figures, is_world, with_distances


def look(values, images=None, **more):
    values = np.array(values, float)
    images = np.zeros((*values.shape, 8, 8, 3), np.uint8) if images is None else images
    return Look(
        tuple(map(str, range(len(values)))),
        images,
        {"reward/sum": values} | {n: np.array(v, float) for n, v in more.items()},
    )


def test_differences_are_paired_over_prompts():
    """Prompts differ by 10, the change is 1 everywhere: its interval is a point, its error 0."""
    before = look([[0, 0], [10, 10], [20, 20]])
    row = compare(before, look([[1, 1], [11, 11], [21, 21]]))["reward/sum"]
    assert row["before"] == 10 and row["after"] == 11 and row["difference"] == 1
    assert row["low"] == pytest.approx(1) and row["high"] == pytest.approx(1) and row["error"] == pytest.approx(0)


def test_what_is_not_known_on_both_sides_stays_out():
    before, after = look([[0, np.nan], [2, 2]]), look([[1, 9], [3, 3]])
    assert compare(before, after)["reward/sum"]["difference"] == pytest.approx(1)


def test_best_of_two_keeps_the_image_the_reward_likes():
    images = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1, 1) * np.ones((1, 1, 8, 8, 3), np.uint8)
    made = best_of(look([[1, 2], [5, 4]], images, **{"verifier/sum": [[7, 3], [8, 9]]}), 2)
    assert made.figures["reward/sum"].tolist() == [[2, 2], [5, 5]] and made.figures["verifier/sum"].tolist() == [
        [3, 3],
        [8, 8],
    ]
    assert made.images[:, 0, 0, 0, 0].tolist() == [1, 2]
    assert best_of(look([[1, 2], [5, 4]], images), 1, 3).figures["reward/sum"].tolist() == [[1, 1, 1], [5, 5, 5]]


def test_distances_by_hand():
    images = np.zeros((1, 2, 8, 8, 3), np.uint8)
    images[0, 1] = 30
    moved = images + 10
    base = with_distances(look([[0, 0]], images), None)
    made = with_distances(look([[0, 0]], moved), base)
    assert base.figures["image/seed_distance"].tolist() == [[30, 30]] and base.figures["image/moved"].tolist() == [
        [0, 0]
    ]
    assert made.figures["image/moved"].tolist() == [[10, 10]]


def test_files_come_back_as_they_were(tmp_path):
    made = look([[1, 2], [3, np.nan]], **{"verifier/sum": [[1, 2], [3, 4]]})
    made.save(tmp_path / "look.npz")
    back = Look.load(tmp_path / "look.npz")
    assert back.prompts == made.prompts and (back.images == made.images).all()
    assert all(np.array_equal(back.figures[n], v, equal_nan=True) for n, v in made.figures.items())
    assert len(back.first(1).prompts) == 1


def test_the_verifier_reads_the_worlds_prompts_only():
    assert is_world(["small red circle"]) and not is_world(["small red circle", "a photo of a cat"])
    gray = np.full((1, 64, 64, 3), 128, np.uint8)
    assert "verifier/match" in independent_figures(gray, ["small red circle"])
    assert "verifier/match" not in independent_figures(gray, ["a photo of a cat"])
