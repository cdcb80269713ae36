"""Human pairwise accuracy: hand numbers, naive loops, ties, single-item groups; tie calibration without leaking."""

import itertools
import math

import pytest
import torch

from zr_ray.functional import pairs


def random_items(seed, size=60, groups=14):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(groups, (size,), generator=generator) * 7 - 20  # labels with holes, some negative
    human = torch.randint(2, 11, (size,), generator=generator).double() / 2
    predicted = ((human + torch.randn(size, generator=generator)) * 4).round() / 4  # predicted ties too
    return predicted, human, group


def naive_pairs(group):
    return [(i, j) for i, j in itertools.combinations(range(len(group)), 2) if group[i] == group[j]]


def naive_hpa(predicted, human, group, min_gap):
    correct = total = 0
    for i, j in naive_pairs(group):
        if abs(human[i] - human[j]) > min_gap:
            total += 1
            correct += bool((predicted[i] > predicted[j]) == (human[i] > human[j]) and predicted[i] != predicted[j])
    return correct, total


def test_pair_indices_are_the_pairs():
    *_, group = random_items(0)
    a, b = pairs.pair_indices(group)
    got = sorted(tuple(sorted(pair)) for pair in zip(a.tolist(), b.tolist(), strict=True))
    assert got == naive_pairs(group.tolist())
    assert [t.tolist() for t in pairs.pair_indices(torch.arange(3))] == [[], []]
    assert [t.tolist() for t in pairs.pair_indices(torch.empty(0, dtype=torch.long))] == [[], []]


def test_hand_numbers():
    human = torch.tensor([5.0, 4.5, 3.0, 3.0, 2.0, 4.0])
    predicted = torch.tensor([4.0, 4.0, 3.0, 1.0, 3.5, 9.0])
    group = torch.tensor([0, 0, 0, 0, 1, 2])
    # pairs with untied humans: 5-4.5 (predicted tie: wrong), 5-3, 5-3, 4.5-3, 4.5-3 right; 3-3 not counted; groups 1
    # and 2 are single
    assert pairs.human_pair_accuracy(predicted, human, group) == (4, 5)
    assert pairs.human_pair_accuracy(predicted, human, group, min_gap=0.5) == (4, 4)  # 0.5 itself is not a margin pair
    assert pairs.human_pair_accuracy(-predicted, human, group) == (0, 5)
    assert pairs.human_pair_accuracy(torch.zeros(6), human, group) == (0, 5)  # a constant judge ranks nothing
    correct, total = pairs.hpa_by_group(predicted, human, group)
    assert (correct.tolist(), total.tolist()) == ([4, 0, 0], [5, 0, 0])


@pytest.mark.parametrize("min_gap", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop(seed, min_gap):
    predicted, human, group = random_items(seed)
    wanted = naive_hpa(predicted.tolist(), human.tolist(), group.tolist(), min_gap)
    assert pairs.human_pair_accuracy(predicted, human, group, min_gap) == wanted
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    assert pairs.human_pair_accuracy(predicted[order], human[order], group[order], min_gap) == wanted
    correct, total = pairs.hpa_by_group(predicted, human, group, min_gap)
    for place, label in enumerate(group.unique()):
        mine = group == label
        assert (correct[place], total[place]) == naive_hpa(
            *(t[mine].tolist() for t in (predicted, human, group)), min_gap
        )


def test_means_of_annotators_carry_rounding():
    votes = torch.tensor([[2.0, 2.0, 2.5], [1.5, 1.5, 2.0], [1.0, 1.0, 1.0]])  # 13/6, 10/6, 1
    human = votes.mean(-1)
    assert human[0].double() - human[1].double() > 0.5  # by 1e-7: the gap is exactly 0.5
    group, predicted = torch.zeros(3, dtype=torch.long), torch.tensor([3.0, 2.0, 1.0])
    assert pairs.human_pair_accuracy(predicted, human, group, min_gap=0.5) == (2, 2)
    tied = torch.tensor([11 / 3, 11 / 3 + 2e-7, 1.0], dtype=torch.float64)
    assert pairs.human_pair_accuracy(predicted, tied, group) == (2, 2)
    assert pairs.pair_accuracy_with_ties(predicted, tied, group, 1.0) == (
        2,
        3,
    )  # human tie said tie, 2-1 wrongly so, 3-1 right


def test_unusable_values():
    human, group = torch.tensor([1.0, 2.0, math.nan]), torch.zeros(3, dtype=torch.long)
    assert pairs.human_pair_accuracy(torch.tensor([1.0, 2.0, 3.0]), human, group) == (1, 1)
    assert pairs.human_pair_accuracy(torch.tensor([1.0, math.nan, 3.0]), human, group) == (0, 1)
    empty = torch.empty(0)
    assert pairs.human_pair_accuracy(empty, empty, empty.long()) == (0, 0)
    with pytest.raises(ValueError, match="must all be"):
        pairs.human_pair_accuracy(human, human[1:], group)


def test_clusters_pool_dimensions_without_mixing_them():
    predicted, human, prompt = random_items(1, size=80, groups=6)
    dimension = torch.arange(80) % 2
    correct, total = pairs.hpa_by_group(predicted, human, prompt * 2 + dimension, cluster=prompt)
    parts = [
        pairs.hpa_by_group(predicted[dimension == d], human[dimension == d], prompt[dimension == d]) for d in (0, 1)
    ]
    assert torch.equal(correct, parts[0][0] + parts[1][0]) and torch.equal(total, parts[0][1] + parts[1][1])
    with pytest.raises(ValueError, match="one cluster"):
        pairs.hpa_by_group(predicted, human, prompt, cluster=dimension)


def naive_tie_accuracy(predicted, human, group, threshold):
    """Deutsch et al.: (C + T_hm) / all pairs."""
    right = 0
    pairs = naive_pairs(group)
    for i, j in pairs:
        gap, human_gap = predicted[i] - predicted[j], human[i] - human[j]
        right += human_gap == 0 if abs(gap) <= threshold else gap * human_gap > 0
    return right, len(pairs)


@pytest.mark.parametrize("seed", range(6))
def test_tie_calibration_against_a_search(seed):
    predicted, human, group = random_items(seed)
    human = human.round()  # more human ties
    lists = predicted.tolist(), human.tolist(), group.tolist()
    gaps = sorted({0.0} | {abs(lists[0][i] - lists[0][j]) for i, j in naive_pairs(lists[2])})
    best = max(gaps, key=lambda t: (naive_tie_accuracy(*lists, t)[0], -t))
    assert pairs.tie_threshold(predicted, human, group) == best
    for threshold in (0.0, best, 0.6):
        assert pairs.pair_accuracy_with_ties(predicted, human, group, threshold) == naive_tie_accuracy(
            *lists, threshold
        )
    dev = torch.isin(group, group.unique()[::2])
    accuracy, threshold = pairs.tie_aware_accuracy(predicted, human, group, dev)
    assert threshold == pairs.tie_threshold(predicted[dev], human[dev], group[dev])
    rest = naive_tie_accuracy(*(t[~dev].tolist() for t in (predicted, human, group)), threshold)
    assert accuracy == pytest.approx(rest[0] / rest[1])


def test_tie_calibration_edges():
    group, human = torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 3.0, 2.0, 4.0])
    predicted = torch.tensor([3.0, 3.2, 1.0, 4.0])
    assert pairs.tie_threshold(predicted, human, group) == pytest.approx(0.2, abs=1e-6)
    assert pairs.pair_accuracy_with_ties(predicted, human, group, 0.25) == (2, 2)
    nan = torch.full((4,), math.nan)
    assert pairs.tie_threshold(nan, human, group) == 0 and pairs.pair_accuracy_with_ties(nan, human, group, 9.0) == (
        0,
        2,
    )
    assert math.isnan(pairs.tie_threshold(predicted, human, torch.arange(4)))
    everything = torch.ones(4, dtype=torch.bool)
    assert all(map(math.isnan, pairs.tie_aware_accuracy(predicted, human, torch.arange(4), everything)))
    assert math.isnan(pairs.tie_aware_accuracy(predicted, human, group, everything)[0])
    with pytest.raises(ValueError, match="whole groups"):
        pairs.tie_aware_accuracy(predicted, human, group, torch.tensor([True, False, True, True]))


def test_a_predicted_difference_that_is_rounding_is_a_tie():
    human, group = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.long)
    assert pairs.human_pair_accuracy(3.2 + torch.tensor([0.0, 1e-12, 2e-12]).double(), human, group) == (0, 3)
    assert pairs.human_pair_accuracy(3.2 + torch.tensor([0.0, 1e-4, 2e-4]).double(), human, group) == (3, 3)
    assert pairs.human_pair_accuracy(3.2 - torch.tensor([0.0, 1e-4, 2e-4]).double(), human, group) == (0, 3)
