"""Aggregation, same-prompt pairs and the schedule that serves them."""

import math
from collections import Counter
from pathlib import Path

import pytest

from zr_ray.data.pairs import PairSchedule, aggregate_scores, group_items, preference_pairs
from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage, PreferencePair


def item(id: str, group: str, **scores) -> AnnotatedImage:
    return AnnotatedImage(id, group, "train", f"prompt {group}", Path(f"/{id}.png"), scores)


def made(counts: dict[str, int]) -> list[PreferencePair]:
    return [
        PreferencePair(item(f"{d}{i}w", "g"), item(f"{d}{i}l", "g"), d, 4.0, 3.0)
        for d, count in counts.items()
        for i in range(count)
    ]


def test_aggregate_by_hand():
    assert aggregate_scores((1.0, 5.0, 3.0, 4.0, 2.5)) == pytest.approx((2.5 + 3 + 4) / 3)
    assert aggregate_scores((5.0, 5.0, 5.0, 1.0, 5.0)) == 5.0
    assert aggregate_scores([1.0, 2.0, 5.0]) == 2.0
    assert aggregate_scores([1.0, 4.0]) == 2.5
    assert aggregate_scores([4.0]) == aggregate_scores(4) == 4.0
    for bad in ([], [math.nan, 1.0], math.inf):
        with pytest.raises(ValueError, match="at least one finite score"):
            aggregate_scores(bad)


def test_pairs_by_hand():
    items = [
        item("a", "g", alignment=3.0, realism=2.0),
        item("x", "h", alignment=1.0),
        item("b", "g", alignment=4.5, realism=2.0),
        item("c", "g", alignment=3.0),
    ]
    assert {g: [i.id for i in m] for g, m in group_items(items).items()} == {"g": ["a", "b", "c"], "h": ["x"]}
    found = [(p.winner.id, p.loser.id, p.dimension, p.winner_score, p.loser_score) for p in preference_pairs(items)]
    assert found == [("b", "a", "alignment", 4.5, 3.0), ("b", "c", "alignment", 4.5, 3.0)], (
        "ties and other prompts give no pair"
    )
    assert preference_pairs(items, ["realism"]) == []


def test_pairs_from_annotators_use_the_aggregate():
    low_mean = item("a", "g", realism=(1.0, 4.0, 4.0, 4.0, 4.5))  # mean 3.5, without the extremes 4
    high_mean = item("b", "g", realism=(3.5, 3.5, 3.5, 4.0, 5.0))  # mean 3.9, without the extremes 3.667
    (pair,) = preference_pairs([low_mean, high_mean])
    assert (pair.winner.id, pair.winner_score, pair.loser_score) == ("a", 4.0, pytest.approx(11 / 3))
    tied = item("c", "g", realism=(1.0, 3.5, 4.0, 4.5, 5.0))  # other scores, same aggregate as a
    assert [p.winner.id + p.loser.id for p in preference_pairs([low_mean, tied])] == []


def test_schedule_is_a_pure_function_of_seed_and_step():
    pairs = made({"alignment": 7, "realism": 5})
    one, two = PairSchedule(pairs, 4, seed=3), PairSchedule(pairs, 4, seed=3)
    forward = [one.batch(step) for step in range(12)]
    assert [two.batch(step) for step in reversed(range(12))] == forward[::-1]
    assert [PairSchedule(pairs, 4, seed=4).batch(step) for step in range(12)] != forward


def test_schedule_visits_every_pair_once_an_epoch_and_runs_through_its_end():
    pairs = made({"alignment": 7, "realism": 5, "aesthetics": 7})
    schedule = PairSchedule(pairs, 5, seed=0)
    stream = [pair for step in range(50) for pair in schedule.batch(step)]
    for dimension, size in {"alignment": 7, "realism": 5, "aesthetics": 7}.items():
        own = [pair.winner.id for pair in stream if pair.dimension == dimension]
        epochs = [own[i : i + size] for i in range(0, len(own) - size, size)]
        assert len(epochs) > 5 and all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1, "each epoch has its own order"
    epoch = 4  # 6 * 3 + 2 slots until the last pair of the second stream with seven, 5 slots a step
    seen = {pair.winner.id for step in range(epoch) for pair in schedule.batch(step)}
    assert len(seen) == len(pairs)
    assert len({pair.winner.id for step in range(epoch - 1) for pair in schedule.batch(step)}) < len(pairs)


def test_the_sequence_does_not_depend_on_the_step_size():
    pairs = made({"alignment": 7, "realism": 5})
    small, large = PairSchedule(pairs, 3, seed=1), PairSchedule(pairs, 12, seed=1)
    assert [p for step in range(8) for p in small.batch(step)] == [p for step in range(2) for p in large.batch(step)]


@pytest.mark.parametrize("pairs_per_step", [1, 4, 6, 48])
def test_every_step_is_balanced_over_dimensions(pairs_per_step):
    schedule = PairSchedule(
        made({"alignment": 30, "realism": 3, "aesthetics": 11, "plausibility": 8}), pairs_per_step, seed=2
    )
    for step in range(20):
        counts = Counter(pair.dimension for pair in schedule.batch(step))
        shares = [counts[d] for d in ("alignment", "realism", "aesthetics", "plausibility")]
        assert sum(shares) == pairs_per_step and max(shares) - min(shares) <= 1


def test_schedule_refusals():
    with pytest.raises(DataError, match="at least one same-prompt pair"):
        PairSchedule([], 4, seed=0)
    with pytest.raises(ConfigError, match="pairs_per_step"):
        PairSchedule(made({"realism": 2}), 0, seed=0)
    with pytest.raises(ValueError, match="step"):
        PairSchedule(made({"realism": 2}), 1, seed=0).batch(-1)
