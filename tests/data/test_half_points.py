"""Half points by comparison: two items end half a point apart, the middle stays, ends of the scale hold, contradictions
move nobody."""

import pytest

from zr_ray.data.half_points import between, half_points
from zr_ray.rubric import SCORE_BINS

ANCHORS = (1.0, 2.0, 3.0, 4.0, 5.0)


def moved(scores, *outcomes, anchors=ANCHORS, bins=SCORE_BINS):
    items = "abcdefgh"[: len(scores)]
    done = half_points(dict(zip(items, scores, strict=True)), [(o[0], o[2], " <=>".index(o[1]) - 2) for o in outcomes],
                       anchors, bins)  # fmt: skip
    return [done[item] for item in items]


def test_two_items():
    assert moved([4, 4], "a>b") == [4.5, 4]
    assert moved([4, 4], "a<b") == [4, 4.5]
    assert moved([4, 4], "a=b") == [4, 4]
    assert moved([5, 5], "a>b") == [5, 4.5], "nothing above: the other one moves down"
    assert moved([1, 1], "a>b") == [1.5, 1]


def test_more_items_keep_the_middle():
    assert moved([3, 3, 3], "a>b", "b>c", "a>c") == [3.5, 3, 2.5]
    assert moved([3, 3, 3], "a>b", "a>c", "b=c") == [3.5, 3, 3], "two levels: the upper one moves"
    assert moved([3, 3, 3], "a>c", "b>c", "a=b") == [3.5, 3.5, 3]
    assert moved([5, 5, 5], "a>b", "b>c", "a>c") == [5, 5, 4.5]
    assert moved([1, 1, 1], "a>b", "b>c", "a>c") == [1.5, 1, 1]
    assert moved([3, 3, 3], "a>b", "b>c", "c>a") == [3, 3, 3], "in a circle nobody is better"


def test_only_items_of_one_score_are_compared():
    assert moved([4, 3, 4], "b>a", "a>c") == [4.5, 3, 4]
    assert moved([3, 3, 3], "a>b") == [3.5, 3, 3], "who was not compared stays, and is no middle"
    assert moved([2, 2, 4, 4], "a>b", "c<d") == [2.5, 2, 4, 4.5]


def test_other_scales():
    assert moved([1, 1], "a>b", anchors=(0, 1, 2), bins=(0, 1, 2)) == [1, 1], "nothing between: nothing to give"
    assert moved([0, 0], "a>b", anchors=(0, 10), bins=(0, 3, 6, 10)) == [6, 0], "the bin nearest to halfway"
    assert between((0, 10), (0, 4, 10), 10, up=False) == 4 and between((0, 10), (0, 4, 10), 10, up=True) is None
    with pytest.raises(ValueError, match="not in"):
        moved([2.5, 2.5], "a>b")
