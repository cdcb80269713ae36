"""DiffusionNFT: direction and size of the gradient by hand, what must not get one, the targets and the old policy's
schedules."""

import pytest
import torch

from zr_ray.functional.flow import noised
from zr_ray.functional.nft import nft_loss, nft_targets, old_policy_decay


def sample(count=6):
    random = torch.Generator().manual_seed(0)
    clean, noise, velocity = torch.randn(3, count, 4, 2, 2, generator=random)
    sigmas = torch.linspace(0.2, 0.9, count)
    return clean, noised(clean, noise, sigmas), sigmas, velocity


@pytest.mark.parametrize("mix", [1.0, 0.1])
def test_gradient_at_the_old_policy_is_proportional_to_two_r_minus_one(mix):
    clean, latents, sigmas, old = sample()
    gradients = []
    for r in (1.0, 0.75, 0.5, 0.0):
        velocity = old.clone().requires_grad_()
        nft_loss(velocity, old, latents, clean, sigmas, torch.full((6,), r), mix).sum().backward()
        gradients.append(velocity.grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[1], 0.5 * gradients[0], atol=1e-6)
    assert gradients[2].abs().max() < 1e-6
    assert torch.allclose(gradients[3], -gradients[0], atol=1e-6)


def test_a_good_sample_draws_the_estimate_to_itself_and_a_bad_one_pushes():
    clean, latents, sigmas, old = sample()
    for r, closer in ((1.0, True), (0.0, False)):
        velocity = old.clone().requires_grad_()
        nft_loss(velocity, old, latents, clean, sigmas, torch.full((6,), r)).sum().backward()
        moved = old - 0.01 * velocity.grad

        def distance(v):
            return (latents - sigmas.view(-1, 1, 1, 1) * v - clean).square().mean((1, 2, 3))

        assert ((distance(moved) < distance(old)) == closer).all()


def test_loss_by_hand():
    """One number: x0 = 0, sigma = .5, x = 1, v = v_old = 1: estimate .5, error .5, loss 5 (r + 1 - r) .25 / .5 =
    2.5."""
    one = torch.ones(1, 1)
    assert nft_loss(one, one, one, torch.zeros(1, 1), torch.tensor([0.5]), torch.tensor([0.3])).item() == pytest.approx(
        2.5
    )


def test_old_velocity_gets_no_gradient_and_bfloat16_is_lifted():
    clean, latents, sigmas, old = sample()
    old.requires_grad_()
    velocity = old.detach().bfloat16().requires_grad_()
    loss = nft_loss(velocity, old, latents, clean, sigmas, torch.full((6,), 0.9))
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert old.grad is None and velocity.grad.isfinite().all()


def test_targets_and_schedules():
    assert nft_targets(torch.tensor([-9.0, -5.0, 0.0, 1.0, 7.0])).tolist() == pytest.approx([0, 0, 0.5, 0.6, 1])
    assert [old_policy_decay("on_policy", n) for n in (0, 100)] == [0, 0]
    assert [old_policy_decay("slow", n) for n in (0, 100, 900)] == pytest.approx([0, 0.1, 0.5])
    assert [old_policy_decay("late", n) for n in (0, 75, 175, 900)] == pytest.approx([0, 0, 0.75, 0.999])
    with pytest.raises(ValueError, match="on_policy, slow or late"):
        old_policy_decay("never", 1)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        nft_loss(*[torch.ones(1, 1)] * 4, torch.ones(1), torch.ones(1), mix=0.0)
