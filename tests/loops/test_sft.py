"""The supervised objective by hand: label and chain weights, soft targets, denominators over micro-batches."""

import math

import pytest
import torch

from zr_ray.config.sft import SftSection
from zr_ray.loops.sft import SftObjective, score_targets
from zr_ray.models.judge import JudgeOutputs
from zr_ray.rubric import PAPER

BINS = torch.tensor(PAPER.bins)


def outputs():
    """Two answers: a direct one (label only) and a chain of two words, label, end."""
    labels = torch.full((2, 9), 0.1).log()
    labels[0, 4] = math.log(0.2)
    logprobs = torch.tensor([[math.log(0.2), 0.0, 0.0, 0.0], [-1.0, -2.0, math.log(0.1), -3.0]])
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    return JudgeOutputs(
        logprobs.requires_grad_(), mask, labels.requires_grad_(), torch.tensor([True, True]), torch.tensor([0, 2])
    )


def test_loss_by_hand_and_gradients():
    out = outputs()
    targets = score_targets(torch.tensor([3.0, 1.0]), SftSection(), BINS)
    loss, metrics = SftObjective(targets, total=2, chain_weight=0.5)(out, [0, 1], None)
    score, chain = (-math.log(0.2) - math.log(0.1)) / 2, (1 + 2 + 3) / 3 / 2
    assert metrics["loss/score"] == pytest.approx(score) and metrics["loss/chain"] == pytest.approx(chain)
    assert loss.item() == pytest.approx(score + 0.5 * chain)
    loss.backward()
    assert out.score_logprobs.grad[0].nonzero().flatten().tolist() == [4] and out.score_logprobs.grad[
        1
    ].nonzero().flatten().tolist() == [0]
    assert out.logprobs.grad[0].abs().sum() == 0  # a direct answer has no chain
    assert out.logprobs.grad[1].tolist() == pytest.approx(
        [-1 / 12, -1 / 12, 0, -1 / 12]
    )  # the label counts once, as the score


def test_microbatches_add_up():
    whole, _ = SftObjective(torch.eye(9)[[4, 0]], 2, 1.0)(outputs(), [0, 1], None)
    parts = 0.0
    for unit in (0, 1):
        o = outputs()
        one = JudgeOutputs(
            o.logprobs[[unit]], o.mask[[unit]], o.score_logprobs[[unit]], o.valid[[unit]], o.score_index[[unit]]
        )
        parts += SftObjective(torch.eye(9)[[4, 0]], 2, 1.0)(one, [unit], None)[0].item()
    assert whole.item() == pytest.approx(parts)


def test_targets():
    assert score_targets(torch.tensor([1.25]), SftSection(target="two_hot"), BINS)[0, :2].tolist() == [0.5, 0.5]
    gaussian = score_targets(torch.tensor([3.0]), SftSection(target="gaussian"), BINS)[0]
    assert gaussian.argmax() == 4 and gaussian.sum().item() == pytest.approx(1.0)
    with pytest.raises(ValueError):
        score_targets(torch.tensor([1.25]), SftSection(), BINS)
