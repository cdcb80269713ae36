"""The engine around something that is no judge: an update by hand, and what is not finite goes nowhere."""

import pytest
import torch
from torch import nn

from zr_ray.config.workers import LearnerSection
from zr_ray.errors import NonFiniteError
from zr_ray.workers.engine import Engine, Ranks


class Scale(nn.Module):
    """y = w x, one weight a feature."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x):
        return (self.weight * x).sum()


def make(stage, **settings):
    config = LearnerSection(threads=1, zero_stage=stage, grad_clip=0.0, **settings)
    return Engine(Scale(), config, Ranks(config))


@pytest.mark.parametrize("stage", [0, 1])
def test_gradients_add_up_until_apply(stage):
    engine = make(stage)
    engine.backward(engine.forward(torch.tensor([3.0, 0.0])))
    engine.backward(engine.forward(torch.tensor([0.0, 4.0])))
    engine.backward(engine.forward(torch.tensor([100.0, 0.0])), counted=False)
    norm = engine.apply(0.5)["learner/grad_norm"]
    assert stage == 0 or norm == pytest.approx(5.0)  # of (3, 4); plain DeepSpeed measures it only where it clips
    torch.testing.assert_close(engine.module.weight.detach(), torch.tensor([0.5, 1.5]))  # Adam's first step is the rate


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(stage, bad):
    engine = make(stage)
    engine.backward(engine.forward(torch.tensor([bad, 1.0])))
    with pytest.raises(NonFiniteError, match="lower learner.lr"):
        engine.apply(0.5)
    assert [value.tolist() for _, value in engine.named_weights()] == [[1.0, 2.0]]


def test_weights_that_are_not_finite_are_found():
    engine = make(1)
    engine.require_finite_weights()
    engine.module.weight.data[1] = float("inf")
    with pytest.raises(NonFiniteError, match="weights are not finite"):
        engine.require_finite_weights()
