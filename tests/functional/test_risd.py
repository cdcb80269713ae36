"""Distillation KL: direction, zero at equality, no gradient into the teacher; label mixing, temperature, averaging of
traces."""

import math

import pytest
import torch

from zr_ray.functional import risd
from zr_ray.functional.scores import score_entropy


def random_log_q(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_kl_by_hand_and_its_direction():
    teacher, student = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.75]).double().log()
    assert risd.score_kl(teacher, student).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert risd.score_kl(student, teacher).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    # KL(teacher || student): a bin the teacher never uses costs nothing, a bin the student never uses costs everything.
    one_hot, even = torch.tensor([1.0, 0.0]).double().log(), torch.tensor([0.5, 0.5]).double().log()
    assert risd.score_kl(one_hot, even).item() == pytest.approx(math.log(2))
    assert risd.score_kl(even, one_hot) == math.inf
    assert risd.score_kl(one_hot, one_hot) == 0


def test_kl_properties():
    teacher, student = random_log_q(4, 3, 9), random_log_q(4, 3, 9, seed=1)
    kl = risd.score_kl(teacher, student)
    assert kl.shape == (4, 3) and (kl > 0).all()
    assert (risd.score_kl(teacher, teacher) == 0).all()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(risd.score_kl(teacher[..., order], student[..., order]), kl, atol=1e-12)
    cross_entropy = -(teacher.exp() * student).sum(-1)
    assert torch.allclose(kl, cross_entropy - score_entropy(teacher), atol=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        risd.score_kl(teacher, student[..., :8])


def test_gradient_into_the_student_only():
    teacher, logits = random_log_q(5, 9).requires_grad_(), random_log_q(5, 9, seed=1).requires_grad_()
    loss = risd.score_kl(teacher, logits.log_softmax(-1)).mean()
    gradients = torch.autograd.grad(loss, (teacher, logits), allow_unused=True)
    assert gradients[0] is None
    assert torch.allclose(gradients[1], (logits.softmax(-1) - teacher.exp()) / 5, atol=1e-12)
    at_teacher = teacher.detach().clone().requires_grad_()
    risd.score_kl(teacher, at_teacher.log_softmax(-1)).sum().backward()
    assert at_teacher.grad.abs().max() < 1e-15
    impossible = torch.tensor([1.0, 0.0, 0.0]).log()
    student = torch.zeros(3, requires_grad=True)
    risd.score_kl(impossible, student.log_softmax(-1)).backward()
    assert student.grad.isfinite().all()
    assert risd.score_kl(torch.full((3,), math.nan), student.log_softmax(-1)).isnan()  # a broken teacher is visible


def test_mix_labels():
    teacher, label = torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([[1.0, 0.0], [math.nan, math.nan]])
    mixed = risd.mix_labels(teacher, label, torch.tensor([0.5, 0.0]))
    assert torch.allclose(mixed, torch.tensor([[0.6, 0.4], [0.6, 0.4]]))
    assert torch.equal(risd.mix_labels(teacher, label, 0.0), teacher)
    assert torch.equal(risd.mix_labels(teacher[:1], label[:1], 1.0), label[:1])
    assert risd.score_kl(risd.mix_labels(teacher[:1], label[:1], 1.0).log(), teacher[:1].log()).item() == pytest.approx(
        math.log(5)
    )
    with pytest.raises(ValueError, match="label weight"):
        risd.mix_labels(teacher, label, 1.5)


def test_temper():
    log_q = torch.tensor([0.2, 0.8]).double().log()
    assert torch.allclose(risd.temper(log_q, 1.0), log_q, atol=1e-12)
    assert torch.allclose(risd.temper(log_q, 0.5).exp(), torch.tensor([0.04, 0.64]).double() / 0.68, atol=1e-12)
    assert score_entropy(risd.temper(log_q, 3.0)) > score_entropy(log_q) > score_entropy(risd.temper(log_q, 0.3))
    with pytest.raises(ValueError, match="temperature"):
        risd.temper(log_q, 0.0)


def test_average_is_a_mixture_and_drops_malformed_traces():
    log_q = random_log_q(3, 4, 9)
    assert torch.allclose(risd.average_distributions(log_q).exp(), log_q.exp().mean(0), atol=1e-12)
    assert torch.allclose(risd.average_distributions(log_q[:1]), log_q[0], atol=1e-12)
    certain = torch.eye(2).double().log()
    assert torch.allclose(risd.average_distributions(certain).exp(), torch.tensor([0.5, 0.5]).double())
    valid = torch.tensor([[True, True, False, False], [True, False, True, False], [True, True, True, False]])
    poisoned = torch.where(valid[..., None], log_q, torch.full_like(log_q, math.nan))
    averaged = risd.average_distributions(poisoned, valid)
    for item in range(3):
        assert torch.allclose(averaged[item].exp(), log_q[valid[:, item], item].exp().mean(0), atol=1e-12)
    assert averaged[3].isnan().all()
    with pytest.raises(ValueError, match="valid must be"):
        risd.average_distributions(log_q, valid.T)
