"""On-policy distillation: sign, stop-gradient, mask, micro-batches, and the gradient of the reverse KL in
expectation."""

import math

import pytest
import torch

from zr_ray.functional import grpo, opd

MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_loss_and_gradient_by_hand():
    teacher, old = (
        torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]]),
        torch.tensor([[-2.0, -1.5, -9.0], [-0.5, 0.0, 0.0]]),
    )
    advantages = opd.opd_advantages(teacher, old)
    assert advantages.tolist() == [[1.0, -0.5, 6.0], [0.0, 0.0, 0.0]]
    student = old.clone().requires_grad_()
    loss = opd.opd_loss(student, advantages, MASK)
    assert loss.item() == pytest.approx(-(1.0 * -2.0 + -0.5 * -1.5 + 0.0 * -0.5) / 3)
    loss.backward()
    wanted = torch.tensor([[-1 / 3, 0.5 / 3, 0.0], [0.0, 0.0, 0.0]])  # tokens the teacher likes better must rise
    assert torch.allclose(student.grad, wanted)


def test_teacher_and_old_student_are_constants():
    leaves = [torch.randn(2, 3).requires_grad_() for _ in range(3)]
    advantages = opd.opd_advantages(leaves[0], leaves[1])
    gradients = torch.autograd.grad(opd.opd_loss(leaves[2], advantages, MASK), leaves, allow_unused=True)
    assert not advantages.requires_grad and gradients[0] is None and gradients[1] is None and gradients[2] is not None
    same = torch.randn(2, 3)
    assert (opd.opd_advantages(same, same) == 0).all()


def test_expected_gradient_is_that_of_the_reverse_kl():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = torch.randn(6, dtype=torch.float64, generator=generator).log_softmax(-1)
    student = logits.log_softmax(-1)
    probability = student.exp().detach()
    advantages = opd.opd_advantages(teacher[:, None], student[:, None])
    terms = opd.opd_terms(student[:, None], advantages, torch.ones(6, 1, dtype=torch.bool))[:, 0]
    (got,) = torch.autograd.grad((probability * terms).sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits)
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_tokens_have_no_influence(poison):
    teacher, old = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for value in (0.0, poison):
        t, o = (torch.where(MASK, x, torch.full_like(x, value)) for x in (teacher, old))
        student = o.clone().requires_grad_()
        loss = opd.opd_loss(student, opd.opd_advantages(t, o), MASK)
        loss.backward()
        results.append((loss.detach(), student.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and (results[1][1][~MASK] == 0).all()
    assert opd.opd_loss(old, teacher, torch.zeros_like(MASK)) == 0


def test_micro_batches_equal_one_batch_and_shapes_are_checked():
    student, advantages = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts = [
        grpo.aggregate_tokens(
            opd.opd_terms(student[n : n + 1], advantages[n : n + 1], MASK[n : n + 1]), MASK[n : n + 1], "token_mean"
        )
        for n in range(2)
    ]
    total = sum(p[0] for p in parts) / sum(p[1] for p in parts)
    assert total.item() == pytest.approx(opd.opd_loss(student, advantages, MASK).item(), abs=1e-14)
    with pytest.raises(ValueError, match="same tokens"):
        opd.opd_advantages(student, advantages[:, 1:])
    with pytest.raises(ValueError, match="one shape"):
        opd.opd_terms(student, advantages[0], MASK)
