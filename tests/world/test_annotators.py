"""Simulated annotators, the training-label workflow, and the writer of the world's data set."""

import json

import numpy as np
import pytest

from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.data.pairs import aggregate_scores, preference_pairs
from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.world.annotators import BIAS_SD, NOISE_SD, AnnotatorPool, compare_in_bins, control, round_half
from zr_ray.world.build import write_world
from zr_ray.world.sampling import sample_group


def test_round_half_by_hand():
    assert [round_half(x) for x in (-3, 1.2, 1.25, 3.24, 3.26, 4.74, 4.75, 9)] == [1, 1, 1.5, 3, 3.5, 4.5, 5, 5]


def test_comparison_moves_distinguishable_ties_inside_their_bin():
    assert compare_in_bins([3.0, 3.0], [3.4, 2.8]) == [3.5, 3.0], "the better one of a tie on an integer goes up"
    assert compare_in_bins([3.5, 3.5], [3.4, 2.8]) == [3.5, 3.0], "the worse one of a tie on a half goes down"
    assert compare_in_bins([5.0, 5.0], [5.2, 4.1]) == [5.0, 4.5], "nothing lies above 5"
    assert compare_in_bins([3.0, 3.0], [3.1, 2.8]) == [3.0, 3.0], "not distinguishable"
    assert compare_in_bins([3.0, 4.0], [1.0, 5.0]) == [3.0, 4.0], "other bins are not compared"
    assert compare_in_bins([2.0, 2.0, 2.0, 4.0], [1.9, 2.1, 2.9, 4.0]) == [2.0, 2.0, 2.5, 4.0]


def test_quality_control_by_hand():
    asked = []

    def rater(*answers):
        asked.clear()
        return lambda which: (asked.append(which), answers[which - 1])[1]

    assert control(3.0, rater(4.0, 9.0)) == 3.0 and asked == [1], "within one point: confirmed, no arbiter"
    assert control(3.0, rater(4.5, 4.0)) == 4.0 and asked == [1, 2], "median of the three"
    assert control(3.0, rater(4.5, 2.5)) == 3.0
    assert control(2.0, rater(4.5, 3.25)) is None, "the arbiter agrees with neither"


def test_raters_have_the_fitted_spread():
    pool, rng = AnnotatorPool(0), np.random.default_rng(0)
    for dimension in DIMENSIONS:
        scores = np.array([pool.rate(rng, dimension, 3.0, 4) for _ in range(4000)])
        expected = np.hypot(NOISE_SD[dimension], 0.5 / np.sqrt(12))  # rounding to half-points adds its own variance
        assert scores.std() == pytest.approx(expected, rel=0.06)
        assert scores.mean() == pytest.approx(3.0 + pool.biases[dimension][4], abs=0.05)
        biases = [b for seed in range(40) for b in AnnotatorPool(seed).biases[dimension]]
        assert np.std(biases) == pytest.approx(BIAS_SD[dimension], rel=0.1)


def test_five_raters_are_the_same_within_a_group():
    """With the noise taken out, all items of a group carry the same five biases."""
    pool = AnnotatorPool(1)
    silent = type(
        "Silent", (), {"standard_normal": lambda self: 0.0, "permutation": lambda self, n: np.arange(n)[::-1]}
    )()
    pool.biases = {d: [0.5 * (r % 3) for r in range(24)] for d in DIMENSIONS}
    truths = [dict.fromkeys(DIMENSIONS, 2.0), dict.fromkeys(DIMENSIONS, 3.0)]
    first, second = pool.test_scores(silent, truths)
    assert first["realism"] == (3.0, 2.5, 2.0, 3.0, 2.5) and second["realism"] == (4.0, 3.5, 3.0, 4.0, 3.5)


def test_noise_ceiling_stays_where_it_was_measured():
    """What a judge that knows the true score gets on test labels: pooled HPA .93 and PLCC .96 on 6,000 items."""
    rng, pool, right, truth, human = np.random.default_rng(5), AnnotatorPool(0), [], [], []
    for _ in range(400):
        truths = [c.truth for c in sample_group(rng)]
        for dimension in DIMENSIONS:
            scores = [aggregate_scores(s[dimension]) for s in pool.test_scores(rng, truths)]
            values = [t[dimension] for t in truths]
            truth, human = truth + values, human + scores
            right += [
                (values[i] - values[j]) * (scores[i] - scores[j]) > 0
                for i in range(4)
                for j in range(i)
                if scores[i] != scores[j]
            ]
    assert np.mean(right) == pytest.approx(0.932, abs=0.015)
    assert np.corrcoef(truth, human)[0, 1] == pytest.approx(0.96, abs=0.01)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    assert write_world(root, train_groups=12, dev_groups=3, test_groups=6, seed=5) == 84
    return root


def test_world_reads_back_with_the_right_labels(world):
    items = list(read_annotations(world, decode_images=True))
    assert (
        len(items) == 84
        and {i.origin for i in items} == {"rendered"}
        and json.loads((world / "world.json").read_text())["simulated"]
    )
    for item in items:
        assert load_image(item.image).shape == (64, 64, 3) and set(item.truth) == set(DIMENSIONS)
        if item.split == "train":
            assert set(item.scores.values()) <= set(SCORE_BINS) and set(item.reasoning) == set(DIMENSIONS)
        else:
            assert all(len(s) == 5 for s in item.scores.values()) and not item.reasoning
    assert len(preference_pairs(read_annotations(world, split="train"))) > 200
    assert not {i.prompt for i in items if i.split == "train"} & {i.prompt for i in items if i.split == "test"}


def test_world_is_deterministic_and_a_longer_one_starts_the_same(world, tmp_path):
    write_world(tmp_path, train_groups=12, dev_groups=3, test_groups=6, seed=5)
    names = sorted(p.relative_to(world).as_posix() for p in world.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert all((world / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    longer, other = tmp_path / "longer", tmp_path / "other"
    write_world(longer, train_groups=13, test_groups=0, seed=5)
    write_world(other, train_groups=12, test_groups=0, seed=6)
    lines = (world / "annotations.jsonl").read_text().splitlines()[:48]
    assert (longer / "annotations.jsonl").read_text().splitlines()[:48] == lines
    assert (other / "annotations.jsonl").read_text().splitlines()[:48] != lines


def test_splits_are_different_streams(world):
    first = {i.split: i for i in reversed(list(read_annotations(world))) if i.id.endswith("000000-0")}
    pixels = {split: load_image(item.image).tobytes() for split, item in first.items()}
    assert set(pixels) == {"train", "dev", "test"} and len(set(pixels.values())) == 3


def test_world_refusals(tmp_path):
    for train, test, candidates in ((0, 0, 4), (-1, 2, 4), (2, 2, 1)):
        with pytest.raises(DataError, match="wanted some groups"):
            write_world(tmp_path, train_groups=train, test_groups=test, candidates=candidates)
