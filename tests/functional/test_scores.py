"""Score distributions: hand numbers, soft labels whose mean and sum are exact, gradients."""

import math

import pytest
import torch

from zr_ray.functional import scores

BINS = torch.arange(9, dtype=torch.float64) / 2 + 1


def test_log_distribution_ignores_the_rest_of_the_vocabulary():
    label_logits = torch.tensor([0.0, math.log(3.0)])
    log_q = scores.score_log_distribution(label_logits)
    assert torch.allclose(log_q.exp(), torch.tensor([0.25, 0.75]))
    full_vocabulary = label_logits - 7.3  # log-probs are logits minus one constant
    assert torch.allclose(scores.score_log_distribution(full_vocabulary), log_q, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 bins"):
        scores.score_log_distribution(torch.zeros(3, 1))


def test_moments_and_entropy_by_hand():
    log_q = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64).log()
    bins = torch.tensor([1.0, 2.0, 5.0])
    assert torch.allclose(scores.expected_score(log_q, bins), torch.tensor([3.0, 2.0]).double())
    assert torch.allclose(scores.score_variance(log_q, bins), torch.tensor([4.0, 0.0]).double())
    assert torch.allclose(scores.score_entropy(log_q), torch.tensor([math.log(2), 0.0]).double())
    with pytest.raises(ValueError, match="one entry per bin"):
        scores.expected_score(log_q, BINS)


def test_expected_score_gradient_is_q_times_centered_bin():
    logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mu = scores.expected_score(scores.score_log_distribution(logits), BINS)
    (gradient,) = torch.autograd.grad(mu.sum(), logits)
    q = logits.detach().softmax(-1)
    assert torch.allclose(gradient, q * (BINS - mu.detach()[:, None]), atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: scores.score_variance(scores.score_log_distribution(z), BINS), (logits,))
    assert torch.autograd.gradcheck(lambda z: scores.score_entropy(scores.score_log_distribution(z)), (logits,))


def test_outside_mass():
    logits = torch.tensor([1.0, 2.0, 0.0, 3.0])
    labels = logits.log_softmax(-1)[:2]
    wanted = 1 - logits.softmax(-1)[:2].sum()
    assert scores.outside_mass(labels).item() == pytest.approx(wanted.item(), abs=1e-6)
    assert scores.outside_mass(torch.tensor([0.1, -50.0])) == 0  # rounding above 1 is clamped


def test_bin_index_is_exact_and_names_the_bad_score():
    assert scores.bin_index(torch.tensor([[1.0, 4.5], [5.0, 3.0]]), BINS).tolist() == [[0, 7], [8, 4]]
    assert scores.bin_index(torch.tensor([4, 2]), BINS).tolist() == [6, 2]  # whole numbers as integers
    for bad in (4.25, 5.5, math.nan):
        with pytest.raises(ValueError, match=f"got {bad}"):
            scores.bin_index(torch.tensor([1.0, bad]), BINS)


def test_two_hot_by_hand_and_keeps_the_mean():
    label = scores.two_hot(torch.tensor([1.1, 3.0, 5.0]), BINS)
    assert torch.allclose(label[0, :3], torch.tensor([0.8, 0.2, 0.0]), atol=1e-6)
    assert label[1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0] and label[2, 8] == 1
    uneven, means = torch.tensor([1.0, 1.5, 4.0, 5.0]).double(), torch.linspace(1, 5, 97).double()
    label = scores.two_hot(means, uneven)
    assert (label >= 0).all() and torch.allclose(label.sum(-1), torch.ones(97).double())
    assert torch.allclose(label @ uneven, means)
    assert (label > 0).sum(-1).max() == 2
    for bad in (0.9, 5.1, math.nan):
        with pytest.raises(ValueError, match="must lie in"):
            scores.two_hot(torch.tensor([bad]), BINS)


def test_gaussian_label_sum_and_mean_are_exact_everywhere():
    means = torch.linspace(1, 5, 161).double()[:, None].expand(161, 7)
    stds = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.8, 1.5, 6.0]).double().expand(161, 7)
    label = scores.gaussian_soft_label(means, stds, BINS)
    assert (label >= 0).all()
    assert (label.sum(-1) - 1).abs().max() < 1e-9
    assert (label @ BINS - means).abs().max() < 1e-9
    assert torch.allclose(
        label.flip(-1), scores.gaussian_soft_label(6 - means, stds, BINS), atol=1e-9
    )  # symmetric scale
    # No jumps along the mean, and a wider normal never gives a narrower label.
    assert (label[1:, 3:] - label[:-1, 3:]).abs().max() < 0.1
    variance = label @ BINS**2 - means**2
    assert (variance.diff(dim=-1) > -1e-9)[:, 3:].all()


def test_gaussian_label_near_the_end_is_the_tilted_normal():
    """Among all distributions with this mean it is the one nearest to the normal in KL: every feasible step away raises
    KL."""
    mean, std = torch.tensor(4.6).double(), torch.tensor(0.6).double()
    label = scores.gaussian_soft_label(mean, std, BINS)
    mass = torch.special.ndtr((BINS + 0.25 - mean) / std) - torch.special.ndtr((BINS - 0.25 - mean) / std)
    slope = (label / mass).log().diff() / 0.5
    assert torch.allclose(slope, slope[0].expand(8), atol=1e-6) and slope[0] > 0
    generator = torch.Generator().manual_seed(0)
    basis = torch.stack([torch.ones(9).double(), BINS])
    for _ in range(20):
        step = torch.randn(9, generator=generator, dtype=torch.float64)
        step -= torch.linalg.lstsq(basis.T, step[:, None]).solution[:, 0] @ basis  # keeps sum and mean
        other = label + step * (0.3 * (label / step.abs()).min())
        assert (other * (other / mass).log()).sum() > (label * (label / mass).log()).sum()


def test_gaussian_label_in_the_middle_is_the_renormalized_normal():
    label = scores.gaussian_soft_label(torch.tensor(3.0).double(), torch.tensor(0.5).double(), BINS)

    def normal_cdf(z):
        return (1 + math.erf(z / math.sqrt(2))) / 2

    mass = [normal_cdf((s + 0.25 - 3) / 0.5) - normal_cdf((s - 0.25 - 3) / 0.5) for s in BINS.tolist()]
    assert torch.allclose(label, torch.tensor(mass).double() / sum(mass), atol=1e-12)
    # Off the middle, DeQA's affine correction, solved by hand: close to ours where the ends are far.
    mean, std = 3.4, 0.4
    p = torch.tensor(
        [normal_cdf((s + 0.25 - mean) / std) - normal_cdf((s - 0.25 - mean) / std) for s in BINS.tolist()]
    ).double()
    alpha = (mean - 3) / ((p * BINS).sum() - 3 * p.sum())
    affine = (alpha * p + (1 - alpha * p.sum()) / 9).clamp_min(0)
    got = scores.gaussian_soft_label(torch.tensor(mean).double(), torch.tensor(std).double(), BINS)
    assert torch.allclose(got, affine, atol=2e-3) and (got - p).abs().max() < 2e-3


def test_gaussian_label_falls_back_to_two_hot_and_refuses_nonsense():
    narrow = scores.gaussian_soft_label(torch.tensor([3.2]), torch.tensor([0.05]), BINS)
    assert torch.allclose(narrow, scores.two_hot(torch.tensor([3.2]), BINS), atol=1e-6)
    end = scores.gaussian_soft_label(torch.tensor([5.0]), torch.tensor([0.7]), BINS)
    assert end[0, 8] == 1  # nothing else has mean 5
    one = torch.tensor([3.0])
    for mean, std, bins, message in (
        (one, -one, BINS, "std must be"),
        (one, one * math.nan, BINS, "std must be"),
        (one + 3, one, BINS, "must lie in"),
        (one, one, torch.tensor([1.0, 2.0, 5.0]), "evenly spaced"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.gaussian_soft_label(mean, std, bins)


def test_targets_by_name():
    human = torch.tensor([[1.0, 3.5]], dtype=torch.float64)
    assert torch.equal(scores.label_targets(human, "hard", 0.5, BINS), torch.eye(9).double()[torch.tensor([[0, 5]])])
    assert torch.equal(scores.label_targets(human + 0.25, "two_hot", 0.5, BINS), scores.two_hot(human + 0.25, BINS))
    wide = scores.label_targets(human[:, 1:], "gaussian", 0.7, BINS)
    assert (
        torch.equal(wide, scores.gaussian_soft_label(human[:, 1:], torch.full((1, 1), 0.7, dtype=torch.float64), BINS))
        and wide[0, 0, 5] < 0.5
    )
    with pytest.raises(ValueError, match="one of the bins"):
        scores.label_targets(human + 0.25, "hard", 0.5, BINS)
    with pytest.raises(ValueError, match="gaussian"):
        scores.label_targets(human, "soft", 0.5, BINS)
