"""How a judge orders images of one prompt: hand numbers, a naive best-of-n, ties."""

from itertools import combinations

import pytest
import torch

from zr_ray.functional.within_prompt import best_of, pair_accuracy, pair_outcomes, spread, within_correlation


def column(*rows):
    """[P, S, 1] from rows of scores."""
    return torch.tensor(rows, dtype=torch.float64)[..., None]


def test_pairs_by_hand_a_tie_in_mu_is_wrong_and_small_gaps_do_not_count():
    reference = column([1.0, 2.0, 2.04], [3.0, 5.0, 4.0])
    mu = column([1.0, 1.5, 1.0], [3.0, 3.1, 3.2])
    right, pairs = pair_outcomes(reference, mu)
    # first prompt: (0, 1) right, (0, 2) tied in mu so wrong, (1, 2) too close; second: all right but (1, 2)
    assert right.flatten().tolist() == [1, 2] and pairs.flatten().tolist() == [2, 3]
    assert pair_accuracy(reference, mu).item() == pytest.approx(3 / 5)
    assert pair_accuracy(reference, mu, gap=1.5).item() == 1.0


def test_pairs_never_cross_prompts():
    reference = column([1.0, 1.0], [5.0, 5.0])
    assert torch.isnan(pair_accuracy(reference, reference)).all()


def test_spread_and_correlation_ignore_what_prompts_differ_in():
    reference = column([1.0, 2.0], [4.0, 5.0])
    mu = column([3.0, 3.2], [1.0, 1.2])
    assert spread(reference).item() == pytest.approx(0.5) and spread(mu).item() == pytest.approx(0.1)
    assert within_correlation(reference, mu).item() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_equals_the_mean_over_all_subsets(n):
    generator = torch.Generator().manual_seed(0)
    reward, reference = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    for p in range(3):
        chosen = [reference[p, max(members, key=lambda i: reward[p, i])] for members in combinations(range(5), n)]
        assert best_of(reward, reference, n)[p].item() == pytest.approx(torch.stack(chosen).mean().item(), abs=1e-6)


def test_best_of_a_reward_without_opinion_is_the_mean():
    reference = torch.tensor([[1.0, 2.0, 6.0]])
    for n in (1, 2, 3):
        assert best_of(torch.zeros(1, 3), reference, n).item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"1..3, got 4"):
        best_of(reference, reference, 4)
