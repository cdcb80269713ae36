"""Group-relative policy optimization: advantages, clipped ratios, KL estimators, token aggregation (Z-Reward Eq. 3-4
and relatives).

GRPO arXiv 2402.03300; DAPO 2503.14476; Dr. GRPO 2503.20783; GSPO 2507.18071; KL estimators k1-k3: Schulman,
"Approximating KL Divergence", 2020. Log-probs are in nats, ratios have no unit.
Axes: B pairs, J = 2 sides (0 winner, 1 loser), G group, N sequences, T tokens, K bins, D dimensions.
A masked token may hold nan or inf: it enters no statistic and gets a zero gradient.
Left out on purpose: entropy bonuses and critics; the paper uses neither.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAME_REWARD = 1e-6
"""Rewards lie in [-1, 2] in float32 (1.2e-7 each); divided by their standard deviation, rounding errors would become
advantages."""


def group_advantages(
    rewards: Tensor, eps: float = 1e-4, normalization: str = "std", valid: Tensor | None = None
) -> Tensor:
    """Advantage of each sample over its own group (Eq. 3); one group is one input.

        "std":  A_i = (r_i - mean r) / (std r + eps)        "none":  A_i = r_i - mean r  (Dr. GRPO: no difficulty bias)

    std is the POPULATION standard deviation (divide by G): it is defined for one valid sample and keeps |A| <= sqrt(G -
    1). Sample std, as in TRL, gives the same advantages times sqrt((G - 1) / G), a learning-rate factor.
    Samples with valid False stay out of mean and std; their own reward (the group's lowest, see `gdso_reward`) is then
    measured with them; a non-finite one gets 0. A group whose valid rewards are all equal (`SAME_REWARD`), or that has
    none, gets 0 everywhere.
    Args: rewards: [..., G]. eps: same unit as rewards, at least 0. normalization: "std" or "none". valid: [..., G] bool
    or None.
    Returns: [..., G], detached.   Raises: ValueError if G < 2 or a name or shape is wrong."""
    if rewards.ndim == 0 or rewards.shape[-1] < 2:
        raise ValueError(
            f"group_size must be at least 2 for a group baseline, got rewards of shape {tuple(rewards.shape)}"
        )
    if normalization not in ("std", "none"):
        raise ValueError(f'normalization must be "std" or "none", got {normalization!r}')
    rewards = rewards.detach()
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if valid.shape != rewards.shape:
        raise ValueError(f"valid must have the shape of rewards, {tuple(rewards.shape)}, got {tuple(valid.shape)}")
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    kept = torch.where(valid, rewards, torch.zeros_like(rewards))
    mean = kept.sum(-1, keepdim=True) / count
    centered = rewards - mean
    highest = torch.where(valid, rewards, torch.full_like(rewards, -torch.inf)).amax(-1, keepdim=True)
    lowest = torch.where(valid, rewards, torch.full_like(rewards, torch.inf)).amin(-1, keepdim=True)
    if normalization == "std":
        variance = torch.where(valid, centered, torch.zeros_like(centered)).square().sum(-1, keepdim=True) / count
        centered = centered / (variance.sqrt() + eps)
    return torch.where(
        (highest - lowest > SAME_REWARD) & (valid | rewards.isfinite()), centered, torch.zeros_like(centered)
    )


def sequence_ratio(logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalized ratio of each sequence (GSPO, arXiv 2507.18071, Eq. 7).

        s_n = exp( (1/|y_n|) sum_t mask[n,t] (logprobs[n,t] - rollout_logprobs[n,t]) )

    Args: logprobs, rollout_logprobs: [N, T] nats. mask: [N, T] bool, generated tokens.
    Returns: [N, 1] above 0, 1 for an empty sequence, gradient into logprobs only."""
    log_ratio = _masked(logprobs - rollout_logprobs.detach(), mask)
    return (log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)).exp()


def clipped_policy_terms(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    ratio: str = "token",
) -> tuple[Tensor, dict[str, float]]:
    """Per-token surrogate LOSS of the clipped policy gradient (PPO / GRPO; clip_high > clip_low is DAPO's clip-higher).

        term[n,t] = -min( r A_n, clip(r, 1 - clip_low, 1 + clip_high) A_n )
        r = exp(logprobs[n,t] - rollout_logprobs[n,t]) or sequence_ratio[n]

    On-policy (r = 1): term = -A with gradient -A grad log pi, Eq. 4. With ratio "sequence" every token of a sequence
    has the same term, so `aggregate_tokens(..., "sequence_mean")` is GSPO's objective. Engine mismatch: multiply by
    `truncated_correction`.
    Args: logprobs: [N, T] learner, nats. rollout_logprobs: [N, T] of the policy that the ratio is taken against, nats.
        advantages: [N]. mask: [N, T] bool, generated tokens. clip_low: in [0, 1). clip_high: at least 0. ratio: "token"
        or "sequence".
    Returns: ([N, T] terms, 0 outside the mask, gradient into logprobs only; metrics over the mask: ratio_mean,
    ratio_min, ratio_max,
    ratio_max_abs_diff = max |r - 1|, clip_frac = share of tokens whose gradient the clip removed; nan if the mask is
    empty).
    Raises: ValueError on wrong shapes, clips or ratio name."""
    _check_tokens(logprobs, mask, rollout_logprobs)
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(f"advantages must be [N] = {tuple(logprobs.shape[:1])}, got {tuple(advantages.shape)}")
    if not (0 <= clip_low < 1 and clip_high >= 0):
        raise ValueError(f"need 0 <= clip_low < 1 and clip_high >= 0, got {clip_low} and {clip_high}")
    if ratio == "token":
        r = _masked(logprobs - rollout_logprobs.detach(), mask).exp()
    elif ratio == "sequence":
        r = sequence_ratio(logprobs, rollout_logprobs, mask).expand_as(logprobs)
    else:
        raise ValueError(f'ratio must be "token" or "sequence", got {ratio!r}')
    advantage = advantages.detach().to(r).unsqueeze(-1)
    clipped = r.clamp(1 - clip_low, 1 + clip_high)
    terms = _masked(-torch.minimum(r * advantage, clipped * advantage), mask)
    return terms, _ratio_metrics(r.detach()[mask], (clipped * advantage < r * advantage).detach()[mask])


def truncated_correction(old_logprobs: Tensor, rollout_logprobs: Tensor, truncate: float) -> Tensor:
    """Weight for engine mismatch: the learner's own policy at sampling time against what the rollout engine reported.

        w[n,t] = min( exp(old_logprobs[n,t] - rollout_logprobs[n,t]), truncate )      (truncated importance sampling)

    Args: old_logprobs: [N, T] learner, before the update, nats. rollout_logprobs: [N, T] engine, nats. truncate: at
    least 1.
    Returns: [N, T] in (0, truncate], detached, exactly 1 where both agree; multiply it into the policy terms (masked
    tokens may hold nan, so multiply under the mask).   Raises: ValueError if truncate < 1."""
    if not truncate >= 1:
        raise ValueError(f"truncate must be at least 1, so that agreeing engines get weight 1, got {truncate}")
    return (old_logprobs - rollout_logprobs).detach().exp().clamp_max(truncate)


def kl_terms(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k3", mask: Tensor | None = None) -> Tensor:
    """One-sample estimates of KL(pi || pi_ref) per token, d = ref_logprobs - logprobs (Eq. 4's second term).

        k1 = -d     unbiased, any sign; as a LOSS its gradient is noise of mean 0: use it as a measurement only
        k2 = d^2/2  biased value, on-policy gradient of KL(pi || pi_ref)
        k3 = exp(d) - d - 1   unbiased value, at least 0, the usual GRPO loss; gradient (1 - exp(d)) grad log pi

    Args: logprobs: [N, T] learner, nats, tokens sampled from it. ref_logprobs: [N, T] nats. estimator: "k1", "k2" or
        "k3". mask: [N, T] bool or None; outside it the term is 0 with zero gradient.
    Returns: [N, T] nats, gradient into logprobs only.   Raises: ValueError on an unknown estimator."""
    difference = ref_logprobs.detach() - logprobs
    if mask is not None:
        difference = _masked(difference, mask)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(difference) - difference
    raise ValueError(f'estimator must be "k1", "k2" or "k3", got {estimator!r}')


def aggregate_tokens(
    terms: Tensor, mask: Tensor, mode: str = "sequence_mean", length: int | None = None
) -> tuple[Tensor, Tensor]:
    """(sum, denominator) of per-token terms: add both over micro-batches and ranks, then divide once.

        "sequence_mean"  sum_n (1/|y_n|) sum_t term  /  N            GRPO: every sequence weighs the same
        "token_mean"     sum_n sum_t term            /  sum_n |y_n|  DAPO: every token weighs the same
        "fixed_length"   sum_n sum_t term            /  N * length   Dr. GRPO: no length bias at all

    N counts sequences with at least one masked-in token, so padding rows change nothing. A sequence must not be cut
    over calls.
    Args: terms: [N, T]. mask: [N, T] bool. length: tokens, for "fixed_length" only (the generation limit).
    Returns: (scalar sum with gradient, scalar denominator, at least 0, detached).   Raises: ValueError on shapes, mode
    or length."""
    _check_tokens(terms, mask)
    if (length is not None) != (mode == "fixed_length") or (length is not None and length < 1):
        raise ValueError(
            f'length must be given, at least 1, with mode "fixed_length" and only there, got mode {mode!r}, length'
            f" {length}"
        )
    kept, tokens = _masked(terms, mask), mask.sum(-1)
    sequences = (tokens > 0).sum().to(terms.dtype)
    if mode == "sequence_mean":
        return (kept.sum(-1) / tokens.clamp_min(1)).sum(), sequences
    if mode == "token_mean":
        return kept.sum(), tokens.sum().to(terms.dtype)
    if mode == "fixed_length":
        return kept.sum(), sequences * length
    raise ValueError(f'mode must be "sequence_mean", "token_mean" or "fixed_length", got {mode!r}')


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))


def _ratio_metrics(ratios: Tensor, clipped: Tensor) -> dict[str, float]:
    names = ("ratio_mean", "ratio_min", "ratio_max", "ratio_max_abs_diff", "clip_frac")
    if ratios.numel() == 0:
        return dict.fromkeys(names, math.nan)
    values = (ratios.mean(), ratios.min(), ratios.max(), (ratios - 1).abs().max(), clipped.to(ratios.dtype).mean())
    return dict(zip(names, torch.stack(values).tolist(), strict=True))


def _check_tokens(terms: Tensor, mask: Tensor, *others: Tensor) -> None:
    if (
        terms.ndim != 2
        or mask.shape != terms.shape
        or mask.dtype != torch.bool
        or any(o.shape != terms.shape for o in others)
    ):
        shapes = [tuple(t.shape) for t in (terms, mask, *others)]
        raise ValueError(
            f"every [N, T] argument must have one shape and mask must be bool, got {shapes} and mask {mask.dtype}"
        )
