"""Holding the velocity to the reference where the reward must not act: below a noise level firmly, above it weakly.

A learned reward sees fine texture that all images of a group share; nothing in the group tells against it, so training
at low noise draws stripes and speckle. The anchor there is what turned every algorithm from harm to gain on the
built-in generator.
"""

from __future__ import annotations

from torch import Tensor


def anchor_loss(velocity: Tensor, reference: Tensor) -> Tensor:
    """mean (v - v_ref)^2 per sample.   velocity, reference: [N, ...].   Returns: [N]."""
    return (velocity.float() - reference.detach().float()).square().flatten(1).mean(1)


def anchor_weights(sigmas: Tensor, smallest: float, below: float, above: float) -> Tensor:
    """[N]: `below` where the reward does not act (sigma < smallest), `above` where it does."""
    acts = (sigmas >= smallest).float()
    return below * (1 - acts) + above * acts


def gradient_size(gradients: Tensor) -> Tensor:
    """What the anchor's weights are relative to: the root mean square of a sample's loss gradient, times the count of
    its numbers.

    The anchor's own gradient, in the same measure, is 2 w rms(v - v_ref). So with weights w = lambda times this size
    the velocity may move by about 1 / (2 lambda) where reward and anchor balance, whatever the reward's scale and the
    algorithm.
    Args: gradients: [N, ...] d loss_n / d v_n.   Returns: [N]."""
    flat = gradients.float().flatten(1)
    return flat.norm(dim=1) * flat.shape[1] ** 0.5
