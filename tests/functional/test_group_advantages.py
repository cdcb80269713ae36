"""Group advantages: numbers by hand, invariances, and that what was not scored changes nothing."""

import pytest
import torch

from zr_ray.functional.group_advantages import advantages, image_rewards, parsed_scores

NAN = torch.nan


def test_rank_advantages_are_normal_scores_with_ties_averaged():
    values, valid = advantages(torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 3.0], [0.0, 1.0, 1.0]]), "rank")
    high = torch.special.ndtri(torch.tensor(5 / 6, dtype=torch.float64)).item()
    assert values[0].tolist() == pytest.approx([-high, high, 0]) and valid.all()
    assert values[1].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert values[2].tolist() == pytest.approx([-high, high / 2, high / 2])


def test_rank_advantages_ignore_any_rising_transformation():
    rewards = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(advantages(rewards, "rank")[0], advantages(rewards.exp() * 100, "rank")[0])


def test_standardized_and_equal_groups():
    values, _ = advantages(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]), "std")
    assert values[0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5]) and values[1].abs().max() == 0
    shifted, _ = advantages(torch.tensor([[11.0, 12.0, 13.0], [0.0, 0.0, 0.0]]), "std")
    assert torch.allclose(values, shifted)


def test_gdpo_gives_every_dimension_the_same_say_whatever_its_spread():
    rewards = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = rewards * torch.tensor([100.0, 0.01], dtype=torch.float64)
    values, _ = advantages(rewards, "gdpo")
    assert torch.allclose(values, advantages(wide, "gdpo")[0]) and values.std(correction=0).item() == pytest.approx(
        1, rel=1e-6
    )


@pytest.mark.parametrize("name", ["rank", "std", "gdpo"])
def test_what_was_not_scored_leaves_the_statistics_and_lonely_groups_drop_out(name):
    random = torch.Generator().manual_seed(1)
    full = torch.randn(2, 5, 3, generator=random)
    full = full if name == "gdpo" else full.sum(-1)
    holed = torch.cat([full, torch.full_like(full[:, :1], NAN)], 1)
    wanted, _ = advantages(full, name)
    values, valid = advantages(holed, name)
    assert (
        torch.allclose(values[:, :5], wanted)
        and (values[:, 5] == 0).all()
        and valid.tolist() == [[True] * 5 + [False]] * 2
    )
    lonely = full.clone()
    lonely[0, 1:] = NAN
    values, valid = advantages(lonely, name)
    assert not valid[0].any() and (values[0] == 0).all() and valid[1].all()


def test_image_rewards_and_parsed_scores():
    mu, sigma = torch.tensor([[1.0, 4.0], [3.0, 2.0]]), torch.tensor([[0.5, 1.0], [0.0, 0.0]])
    weights = torch.tensor([1.0, 0.5])
    assert image_rewards(mu, sigma, weights).tolist() == pytest.approx([3, 4])
    assert image_rewards(mu, sigma, weights, "worst").tolist() == pytest.approx([1, 1])
    assert image_rewards(mu, sigma, weights, risk=1.0).tolist() == pytest.approx([0.5 + 1.5, 4])
    q = torch.tensor([[0.2, 0.5, 0.3], [NAN, NAN, NAN]])
    assert (
        parsed_scores(q, torch.tensor([1.0, 2.0, 3.0]))[0] == 2
        and parsed_scores(q, torch.tensor([1.0, 2.0, 3.0]))[1].isnan()
    )


def test_refuses_axes_that_do_not_fit():
    with pytest.raises(ValueError, match="3 axes"):
        advantages(torch.zeros(2, 3), "gdpo")
