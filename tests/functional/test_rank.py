"""Pair losses without gaps: exact win probability, symmetry, gradients that survive hopeless pairs."""

import math

import pytest
import torch

from zr_ray.functional import rank

BINS = torch.arange(9, dtype=torch.float64) / 2 + 1


def random_log_q(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_win_probability_by_hand():
    a, b = torch.tensor([0.2, 0.3, 0.5]).double().log(), torch.tensor([0.6, 0.4, 0.0]).double().log()
    # wins .3*.6 + .5*(.6+.4) = .68; ties .2*.6 + .3*.4 = .24
    assert rank.win_probability(a, b).item() == pytest.approx(0.68 + 0.12)
    assert rank.win_nll(a, b).item() == pytest.approx(-math.log(0.8))
    sure = torch.eye(3).double().log()
    assert rank.win_probability(sure[2], sure[0]) == 1 and rank.win_probability(sure[0], sure[2]) == 0


def test_win_probability_against_a_loop_and_its_symmetry():
    a, b = random_log_q(4, 9), random_log_q(4, 9, seed=1)
    for n in range(4):
        p, q = a[n].exp().tolist(), b[n].exp().tolist()
        naive = sum(p[k] * q[j] * (1.0 if k > j else 0.5 if k == j else 0.0) for k in range(9) for j in range(9))
        assert rank.win_probability(a, b)[n].item() == pytest.approx(naive, abs=1e-12)
    assert torch.allclose(rank.win_probability(a, b) + rank.win_probability(b, a), torch.ones(4).double(), atol=1e-12)
    assert torch.allclose(rank.win_nll(a, a), torch.full((4,), math.log(2)).double(), atol=1e-12)
    with pytest.raises(ValueError, match="same bins"):
        rank.win_probability(a, b[:, :5])


def test_win_nll_gradients():
    a, b = random_log_q(3, 9).requires_grad_(), random_log_q(3, 9, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: rank.win_nll(x.log_softmax(-1), y.log_softmax(-1)), (a, b))
    # One small step down the loss raises the winner's mean and lowers the loser's.
    gradient_a, gradient_b = torch.autograd.grad(rank.win_nll(a.log_softmax(-1), b.log_softmax(-1)).sum(), (a, b))
    better, worse = (a - 0.1 * gradient_a).softmax(-1) @ BINS, (b - 0.1 * gradient_b).softmax(-1) @ BINS
    assert (better > a.softmax(-1) @ BINS).all() and (worse < b.softmax(-1) @ BINS).all()
    # A pair that is certain and wrong: P = 1e-87 underflows nowhere and still pulls.
    logits = torch.zeros(2, 9, dtype=torch.float64)
    logits[0, 0], logits[1, 8] = 200.0, 200.0
    logits.requires_grad_()
    log_q = logits.log_softmax(-1)
    loss = rank.win_nll(log_q[0], log_q[1])
    loss.backward()
    assert loss.item() > 100 and logits.grad.isfinite().all() and logits.grad[0, 0] > 0.1


def test_bradley_terry():
    winner, loser = torch.tensor([3.0, 5.0]), torch.tensor([3.0, 1.0])
    assert rank.bradley_terry_nll(winner, loser).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-4))])
    assert rank.bradley_terry_nll(winner, loser, scale=2.0)[1].item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert rank.bradley_terry_nll(loser, winner)[1].item() == pytest.approx(4 + math.log(1 + math.exp(-4)))
    with pytest.raises(ValueError, match="scale"):
        rank.bradley_terry_nll(winner, loser, 0.0)


def test_thurstone():
    a, b = torch.zeros(2, 9).double(), torch.zeros(2, 9).double()
    a[0, [7, 8]], b[0, [4, 6]] = 0.5, 0.5  # means 4.75, 3.5; variances .0625, .25
    a[1, 8], b[1, 4] = 1.0, 1.0  # one-hots: variance 0
    z = 1.25 / math.sqrt(0.3125)
    nll = rank.thurstone_nll(a.log(), b.log(), BINS)
    assert nll[0].item() == pytest.approx(-math.log((1 + math.erf(z / math.sqrt(2))) / 2))
    assert nll[1] == 0
    swapped = rank.thurstone_nll(b.log(), a.log(), BINS)
    assert torch.exp(-nll[0]) + torch.exp(-swapped[0]) == pytest.approx(1.0) and swapped[1].isfinite()
    logits = random_log_q(2, 2, 9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: rank.thurstone_nll(z[0].log_softmax(-1), z[1].log_softmax(-1), BINS), (logits,)
    )
