"""GDSO rewards and losses against hand numbers, the paper's sums as naive loops, gradients, and malformed samples."""

import itertools
import math

import pytest
import torch

from zr_ray.functional import gdso
from zr_ray.functional.scores import expected_score, two_hot

BINS = torch.arange(9, dtype=torch.float64) / 2 + 1


def random_case(pairs=3, group=4, seed=0, drop=0.0):
    generator = torch.Generator().manual_seed(seed)
    mu = torch.rand(pairs, 2, group, generator=generator, dtype=torch.float64) * 4 + 1
    human = BINS[torch.randint(9, (pairs, 2), generator=generator)]
    log_q = torch.randn(pairs, 2, group, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    valid = torch.rand(pairs, 2, group, generator=generator) >= drop
    return mu, human, log_q, valid


def naive_gap_error(mu, human, score_range, valid):
    """Eq. 10-11 as three loops."""
    error = torch.zeros_like(mu)
    for b, j, i in itertools.product(*map(range, mu.shape)):
        others = [k for k in range(mu.shape[2]) if valid[b, 1 - j, k]]
        if valid[b, j, i] and others:
            gaps = [abs((mu[b, j, i] - mu[b, 1 - j, k]) - (human[b, j] - human[b, 1 - j])) for k in others]
            error[b, j, i] = sum(gaps) / len(others) / score_range
    return error


def test_hand_numbers():
    mu = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    human = torch.tensor([[4.0, 2.0]])
    assert gdso.pointwise_error(mu, human, 4.0).tolist() == [[[0.0, 0.25], [0.0, 0.25]]]
    # winner 4: gaps 2, 3 against 2 -> errors 0, 1 -> mean .5 / 4; winner 3: gaps 1, 2 -> 1, 0; loser 2: gaps -2, -1 ->
    # 0, 1
    assert gdso.pairwise_gap_error(mu, human, 4.0).tolist() == [[[0.125, 0.125], [0.125, 0.125]]]
    assert gdso.gdso_reward(mu, human, 4.0, 1.0, 2.0).tolist() == [[[2.75, 2.5], [2.75, 2.5]]]
    assert gdso.pairwise_loss(mu, human, 4.0).item() == 0.125
    log_q = torch.full((1, 2, 2, 9), 1 / 16).log()
    log_q[0, 0, 0, 6] = math.log(0.5)  # score 4.0 is bin 6
    wanted = (math.log(2) + 3 * math.log(16)) / 4
    assert gdso.pointwise_loss(log_q, human, BINS).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_against_the_papers_sums(seed):
    mu, human, log_q, _ = random_case(seed=seed)
    everyone = torch.ones_like(mu, dtype=torch.bool)
    error = naive_gap_error(mu, human, 4.0, everyone)
    assert torch.allclose(gdso.pairwise_gap_error(mu, human, 4.0), error, atol=1e-12)
    pairs, _, group = mu.shape
    eq_11 = (
        sum(
            abs((mu[b, j, i] - mu[b, 1 - j, k]) - (human[b, j] - human[b, 1 - j]))
            for b in range(pairs)
            for j in range(2)
            for i in range(group)
            for k in range(group)
        )
        / (2 * group**2 * 4.0)
        / pairs
    )
    assert gdso.pairwise_loss(mu, human, 4.0).item() == pytest.approx(eq_11.item(), abs=1e-12)
    eq_8 = (
        -sum(log_q[b, j, i, int(2 * (human[b, j] - 1))] for b in range(pairs) for j in range(2) for i in range(group))
        / (2 * group)
        / pairs
    )
    assert gdso.pointwise_loss(log_q, human, BINS).item() == pytest.approx(eq_8.item(), abs=1e-12)
    reward = gdso.gdso_reward(mu, human, 4.0, 0.3, 0.7)
    assert torch.allclose(reward, 0.3 * (1 - (mu - human[..., None]).abs() / 4) + 0.7 * (1 - error), atol=1e-12)


def test_swapping_sides_and_permuting_the_group():
    mu, human, log_q, valid = random_case(seed=5, drop=0.3)
    order = torch.tensor([2, 0, 3, 1])
    arguments = (4.0, 0.4, 0.6)
    reward = gdso.gdso_reward(mu, human, *arguments, valid)
    assert torch.equal(gdso.gdso_reward(mu.flip(1), human.flip(1), *arguments, valid.flip(1)), reward.flip(1))
    moved = gdso.gdso_reward(mu[..., order], human, *arguments, valid[..., order])
    assert torch.allclose(moved, reward[..., order], atol=1e-12)
    for loss, inputs in ((gdso.pairwise_loss, (mu, human, 4.0)), (gdso.pointwise_loss, (log_q, human, BINS))):
        values, targets, rest = inputs
        one = loss(values, targets, rest, valid)
        assert loss(values.flip(1), targets.flip(1), rest, valid.flip(1)).item() == pytest.approx(one.item(), abs=1e-12)
    # A common shift of predictions does not change gaps, hence not the pairwise error.
    assert torch.allclose(
        gdso.pairwise_gap_error(mu + 0.7, human, 4.0, valid), gdso.pairwise_gap_error(mu, human, 4.0, valid), atol=1e-12
    )


def test_gradient_signs_and_paths():
    mu = torch.tensor([[[4.0, 3.0], [2.5, 2.0]]], dtype=torch.float64, requires_grad=True)
    human = torch.tensor([[5.0, 1.0]], dtype=torch.float64)  # every gap is too small: winner must rise, loser must fall
    (gradient,) = torch.autograd.grad(gdso.pairwise_loss(mu, human, 4.0), mu)
    # |gap error| falls by 1 per point; each of the G^2 gaps counts twice in 1/(2 G^2 R): -1/(G R) per winner sample
    assert torch.allclose(gradient, torch.tensor([[[-0.125, -0.125], [0.125, 0.125]]]).double())
    assert not gdso.gdso_reward(mu, human, 4.0, 0.5, 0.5).requires_grad
    *_, human, log_q, _ = random_case(pairs=2)
    logits = log_q.clone().requires_grad_()
    gdso.pointwise_loss(logits.log_softmax(-1), human, BINS).backward()
    target = torch.nn.functional.one_hot((2 * (human - 1)).long(), 9)[:, :, None]
    assert torch.allclose(logits.grad, (log_q.exp() - target) / (2 * 2 * 4), atol=1e-12)
    both = log_q.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: gdso.pairwise_loss(expected_score(z.log_softmax(-1), BINS), human, 4.0), (both,)
    )


def test_soft_targets():
    _, human, log_q, valid = random_case(seed=2, drop=0.3)
    hard = gdso.pointwise_loss(log_q, human, BINS, valid)
    assert gdso.pointwise_loss(log_q, human, BINS, valid, two_hot(human, BINS)).item() == pytest.approx(
        hard.item(), abs=1e-12
    )
    off_bin = human.clamp(1, 4.5) + 0.1
    with pytest.raises(ValueError, match="soft label"):
        gdso.pointwise_loss(log_q, off_bin, BINS)
    soft = gdso.pointwise_terms(log_q, off_bin, BINS, targets=two_hot(off_bin, BINS))
    index = (2 * (off_bin - 1)).long()
    b, j, i = 1, 0, 2
    wanted = -(0.8 * log_q[b, j, i, index[b, j]] + 0.2 * log_q[b, j, i, index[b, j] + 1])
    assert soft[b, j, i].item() == pytest.approx(wanted.item(), abs=1e-9)
    # A bin outside the label may be impossible under q without making nan.
    log_q[0, 0, 0] = torch.nn.functional.one_hot(torch.tensor(3), 9).double().log()
    finite = gdso.pointwise_terms(log_q, torch.full_like(human, 2.5), BINS)
    assert finite[0, 0, 0] == 0


@pytest.mark.parametrize("seed", range(6))
def test_malformed_samples_have_no_influence(seed):
    mu, human, log_q, valid = random_case(seed=seed, drop=0.45)
    valid[0, 1] = False  # a whole side without a valid sample
    assert torch.allclose(
        gdso.pairwise_gap_error(mu, human, 4.0, valid), naive_gap_error(mu, human, 4.0, valid), atol=1e-12
    )
    results = []
    for poison in (0.0, 1e6, math.nan, math.inf, -math.inf):
        bad_mu = torch.where(valid, mu, torch.full_like(mu, poison)).requires_grad_()
        bad_log_q = torch.where(valid[..., None], log_q, torch.full_like(log_q, poison)).requires_grad_()
        pairwise, pointwise = (
            gdso.pairwise_loss(bad_mu, human, 4.0, valid),
            gdso.pointwise_loss(bad_log_q, human, BINS, valid),
        )
        (pairwise + pointwise).backward()
        assert (bad_mu.grad[~gdso.gap_valid(valid)] == 0).all() and (bad_log_q.grad[~valid] == 0).all()
        reward = gdso.gdso_reward(bad_mu, human, 4.0, 0.5, 0.5, valid)
        results.append((pairwise.detach(), pointwise.detach(), bad_mu.grad, bad_log_q.grad, reward))
        assert reward.isfinite().all()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    with_gap = [naive_gap_error(mu, human, 4.0, valid)[gdso.gap_valid(valid)].mean()]
    assert results[0][0].item() == pytest.approx(with_gap[0].item(), abs=1e-12)


def test_reward_of_malformed_samples():
    mu = torch.tensor([[[4.0, 3.0, 9.0], [2.0, 1.5, 1.0]], [[4.0, 3.0, 2.0], [9.0, 9.0, 9.0]]])
    human = torch.tensor([[4.0, 2.0], [4.0, 2.0]])
    valid = torch.tensor([[[True, True, False], [True, True, True]], [[True, True, True], [False, False, False]]])
    reward = gdso.gdso_reward(mu, human, 4.0, 0.5, 0.25, valid)
    assert reward[0, 0, 2] == reward[0, 0, :2].min()
    assert reward[0, 0, 0] != reward[0, 0, 1]
    assert torch.allclose(
        reward[1, 0], 0.75 * torch.tensor([1.0, 0.75, 0.5])
    )  # no gap: the pointwise part carries both weights
    assert (reward[1, 1] == 0).all()
    assert (gdso.gdso_reward(mu, human, 4.0, 0.0, 1.0, valid)[1] == 0).all()  # no pointwise weight to fall back on
    assert gdso.gap_valid(valid)[1].any().item() is False
    assert gdso.pairwise_loss(mu, human, 4.0, torch.zeros_like(valid)) == 0


def test_micro_batches_add_up():
    mu, human, log_q, valid = random_case(pairs=6, seed=3, drop=0.4)
    sums = {"pairwise": [0.0, 0], "pointwise": [0.0, 0]}
    for part in torch.arange(6).split(2):
        v = valid[part]
        sums["pairwise"][0] += gdso.pairwise_gap_error(mu[part], human[part], 4.0, v).sum().item()
        sums["pairwise"][1] += gdso.gap_valid(v).sum().item()
        sums["pointwise"][0] += gdso.pointwise_terms(log_q[part], human[part], BINS, v).sum().item()
        sums["pointwise"][1] += v.sum().item()
    assert sums["pairwise"][0] / sums["pairwise"][1] == pytest.approx(
        gdso.pairwise_loss(mu, human, 4.0, valid).item(), abs=1e-12
    )
    assert sums["pointwise"][0] / sums["pointwise"][1] == pytest.approx(
        gdso.pointwise_loss(log_q, human, BINS, valid).item(), abs=1e-12
    )


def test_arguments_are_not_changed_and_shapes_are_checked():
    mu, human, log_q, valid = random_case(drop=0.3)
    before = [t.clone() for t in (mu, human, log_q, valid)]
    gdso.gdso_reward(mu, human, 4.0, 0.5, 0.5, valid), gdso.pointwise_loss(log_q, human, BINS, valid)
    assert all(torch.equal(a, b) for a, b in zip(before, (mu, human, log_q, valid), strict=True))
    for call in (
        lambda: gdso.pointwise_error(mu, human.T, 4.0),
        lambda: gdso.pairwise_gap_error(mu[:, :1], human[:, :1], 4.0),
        lambda: gdso.pairwise_gap_error(mu, human, 0.0),
        lambda: gdso.pairwise_gap_error(mu, human, 4.0, valid.double()),
        lambda: gdso.pointwise_terms(log_q[..., :8], human, BINS),
        lambda: gdso.pointwise_terms(log_q, human, BINS, targets=human),
    ):
        with pytest.raises(ValueError, match="must|expected"):
            call()
