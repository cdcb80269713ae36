"""DiffusionNFT (arXiv 2509.16117): policy gradient on the forward process. Needs clean latents and rewards, no step
densities.

v+ = b v + (1 - b) v_old,   v- = (1 + b) v_old - b v          one is drawn to the sample, the other pushed away
"""

from __future__ import annotations

from torch import Tensor

from zr_ray.functional.flow import clean_estimate

ADVANTAGE_CLIP = 5.0
"""Advantages beyond it count as it; also the factor of the loss, so that an advantage of 1 weighs as much as in a
policy gradient."""
SMALLEST_ERROR = 1e-5
"""Floor of the error that a sample's loss is divided by."""


def nft_targets(advantages: Tensor) -> Tensor:
    """r = clip(A, +-5) / 10 + 1/2, in [0, 1]: the share of a sample's loss that draws to it.   advantages: any
    shape."""
    return advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP) / (2 * ADVANTAGE_CLIP) + 0.5


def nft_loss(
    velocity: Tensor,
    old_velocity: Tensor,
    latents: Tensor,
    clean: Tensor,
    sigmas: Tensor,
    targets: Tensor,
    mix: float = 1.0,
) -> Tensor:
    """5 [r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w-] / b per sample, with x0+- = x - sigma v+- and w+- = mean
    |x0+- - x0|.

    At v = v_old the gradient is proportional to 2 r - 1: a sample of average reward does nothing.
    Args: velocity: [N, ...] v of the model that is trained. old_velocity: [N, ...] of the one that sampled, held
        constant. latents: x. clean: x_0. sigmas: [N]. targets: [N] r. mix: b, in (0, 1].   Returns: [N].   Raises:
        ValueError if b is out of range."""
    if not 0 < mix <= 1:
        raise ValueError(f"mix must be in (0, 1], got {mix}")
    v, old, x0, r = velocity.float(), old_velocity.detach().float(), clean.float(), targets.float()
    drawn = _relative_error(mix * v + (1 - mix) * old, latents, x0, sigmas)
    pushed = _relative_error((1 + mix) * old - mix * v, latents, x0, sigmas)
    return ADVANTAGE_CLIP / mix * (r * drawn + (1 - r) * pushed)


def _relative_error(velocity: Tensor, latents: Tensor, clean: Tensor, sigmas: Tensor) -> Tensor:
    """[N] mean square error of x - sigma v over its mean absolute error, the latter held constant."""
    error = (clean_estimate(latents, velocity, sigmas) - clean).flatten(1)
    size = error.detach().double().abs().mean(1).clamp_min(SMALLEST_ERROR)
    return error.square().mean(1) / size.to(error.dtype)


def old_policy_decay(kind: str, update: int) -> float:
    """Share of the old policy that is kept after an update: the sampling weights follow the trained ones.

        "on_policy": 0        "slow": min(.001 n, .5)        "late": 0 for n < 75, then min(.0075 (n - 75), .999)

    Raises: ValueError on another name."""
    if kind == "on_policy":
        return 0.0
    if kind == "slow":
        return min(0.001 * update, 0.5)
    if kind == "late":
        return min(max(0.0075 * (update - 75), 0.0), 0.999)
    raise ValueError(f"the old policy must be on_policy, slow or late, got {kind!r}")
