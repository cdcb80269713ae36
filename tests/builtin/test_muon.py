"""Muon by hand and against the singular value decomposition."""

import pytest
import torch

from zr_ray.builtin.muon import Muon, orthogonalized


def test_newton_schulz_approaches_the_polar_factor():
    matrices = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonalized(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6 and values.max() < 1.3
    aligned = left.mT @ made @ right.mT  # diagonal, as the iteration keeps singular vectors
    assert (aligned - torch.diag_embed(aligned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    assert torch.allclose(orthogonalized(matrices.mT), made.mT, atol=1e-5)


def test_step_by_hand():
    value, frozen = torch.nn.Parameter(torch.zeros(4, 2)), torch.nn.Parameter(torch.ones(4, 2))
    value.grad = torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 0.0], [0.0, 0.0]])
    Muon([value, frozen], lr=0.1, momentum=0.0).step()
    expected = -0.1 * 4**0.5  # times a singular value near 1, whatever the gradient's size
    assert value[0, 0].item() == pytest.approx(expected, rel=0.35) and value[1, 1].item() == pytest.approx(
        expected, rel=0.35
    )
    assert value[0, 1].item() == value[2, 0].item() == 0
    assert (frozen == 1).all()  # it has no gradient


def test_weight_decay_and_momentum_by_hand():
    value = torch.nn.Parameter(torch.full((2, 2), 3.0))
    value.grad = torch.zeros(2, 2)
    optimizer = Muon([value], lr=0.1, momentum=0.5, weight_decay=0.2)
    optimizer.step()
    assert value.detach() == pytest.approx(torch.full((2, 2), 3.0 * (1 - 0.1 * 0.2)))
    value.grad = 4 * torch.eye(2)
    optimizer.step()
    assert optimizer.state[value]["momentum"] == pytest.approx(2 * torch.eye(2))  # 0 + (1 - .5) 4
