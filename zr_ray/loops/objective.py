"""From rollouts to the GDSO loss: rewards and advantages once per step, the loss per micro-batch.

The maths is in `functional/`; this file lines its tensors up with pairs, micro-batches and ranks. GRPO is the same
objective with
alpha_pointwise = alpha_pairwise = lambda_pairwise = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.gdso import GdsoSection
from zr_ray.functional import gdso, grpo, scores
from zr_ray.models.judge import JudgeOutputs
from zr_ray.models.packing import Row
from zr_ray.records import Judgement, JudgeRequest, PreferencePair
from zr_ray.rubric import Rubric


@dataclass(frozen=True)
class PairRollouts:
    """One rank's rollouts of one step, B pairs x 2 sides x G samples."""

    units: list[list[Row]]
    """B units of two rows (winner, loser), G completions each."""
    human_scores: Tensor
    """[B, 2] s-hat, rubric points."""
    expected_scores: Tensor
    """[B, 2, G] mu under the rollout policy (or the parsed score); arbitrary where invalid."""
    valid: Tensor
    """[B, 2, G] bool, False where the output is malformed."""
    advantages: Tensor
    """[B, 2, G], Eq. (3)."""
    rewards: Tensor
    """[B, 2, G], Eq. (13)."""
    empty: Tensor
    """[B, 2, G] bool, True where nothing was reasoned: the score follows at once, or nothing was generated."""
    rollout_logprobs: list[np.ndarray]
    """B*2*G arrays [T_i], pair-major, the engine's log-probs of the sampled tokens."""
    policy_versions: Tensor
    """[B, 2, G] long, version of the weights that sampled each output."""
    bins: Tensor
    """[K] rubric points, the judge's scale."""
    score_range: float
    """S_max - S_min, rubric points."""

    @property
    def tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(len(a) for a in self.rollout_logprobs)


def collect(
    pairs: Sequence[PreferencePair],
    requests: Sequence[JudgeRequest],
    groups: Sequence[Sequence[Judgement]],
    config: GdsoSection,
    rubric: Rubric,
    label_ids: Sequence[int] = (),
    marker_tokens: int = 0,
) -> PairRollouts:
    """Line judgements up as [B, 2, G], decode mu with the rollout policy's distribution, and compute rewards and
    advantages.

    Args: rubric: the judge's. label_ids: [K] token ids of the labels, needed when config.score_from is "parsed": the
    score is then the sampled label. marker_tokens: tokens of the marker before the label, for `empty`."""
    bins = torch.tensor(rubric.bins)
    shape = (len(pairs), 2, config.group_size)
    flat = [j for group in groups for j in group]
    valid = torch.tensor([j.score_index is not None for j in flat]).view(shape)
    labels = np.stack(
        [j.score_logprobs if j.score_logprobs is not None else np.zeros(len(bins), np.float32) for j in flat]
    )
    log_q = scores.score_log_distribution(torch.from_numpy(labels))
    expected = (
        parsed_scores(flat, label_ids, bins) if config.score_from == "parsed" else scores.expected_score(log_q, bins)
    ).view(shape)
    human_scores = torch.tensor([[p.winner_score, p.loser_score] for p in pairs])
    rewards = gdso.gdso_reward(
        expected, human_scores, rubric.score_range, config.lambda_pointwise, config.lambda_pairwise, valid
    )
    rows = [
        Row(request.token_ids, request.image, tuple(j.token_ids for j in group), tuple(j.score_index for j in group))
        for request, group in zip(requests, groups, strict=True)
    ]
    return PairRollouts(
        units=[[rows[2 * i], rows[2 * i + 1]] for i in range(len(pairs))],
        human_scores=human_scores,
        expected_scores=expected,
        valid=valid,
        advantages=grpo.group_advantages(rewards, config.advantage_eps, config.advantage_normalization, valid),
        rewards=rewards,
        empty=torch.tensor([is_empty(j, marker_tokens) for j in flat]).view(shape),
        rollout_logprobs=[j.logprobs for j in flat],
        policy_versions=torch.tensor([j.policy_version for j in flat]).view(shape),
        bins=bins,
        score_range=rubric.score_range,
    )


def is_empty(judgement: Judgement, marker_tokens: int) -> bool:
    """Whether an output reasons about nothing: marker and label alone, or at most one token (the end)."""
    if judgement.score_index is None:
        return len(judgement.token_ids) <= 1
    return judgement.score_index <= marker_tokens


def parsed_scores(judgements: Sequence[Judgement], label_ids: Sequence[int], bins: Tensor) -> Tensor:
    """[N] the bin whose label each output wrote, what a parser of its text would find; the lowest bin where
    malformed."""
    written = [
        0 if j.score_index is None else list(label_ids).index(int(j.token_ids[j.score_index])) for j in judgements
    ]
    return bins[torch.tensor(written, dtype=torch.long)]


def rollout_metrics(rollouts: PairRollouts, version: int) -> dict[str, float]:
    """Sums (not means) of what the rollouts show, to be added over ranks; see `MEANS` for their denominators."""
    error = 1 - gdso.pointwise_error(rollouts.expected_scores, rollouts.human_scores, rollouts.score_range)
    gap = 1 - gdso.pairwise_gap_error(
        rollouts.expected_scores, rollouts.human_scores, rollouts.score_range, rollouts.valid
    )
    both = gdso.gap_valid(rollouts.valid)
    silent = (rollouts.advantages == 0).all(-1)
    return {
        "samples": float(rollouts.valid.numel()),
        "valid": float(rollouts.valid.sum()),
        "gap_valid": float(both.sum()),
        "tokens": float(rollouts.tokens),
        "groups": float(silent.numel()),
        "reward/no_signal_frac": float(silent.sum()),
        "reward/group_std": float(rollouts.rewards.std(-1, correction=0).sum()),
        "score/group_std": float(_spread(rollouts.expected_scores, rollouts.valid).sum()),
        "reward/pointwise": float(error[rollouts.valid].sum()),
        "reward/pairwise": float(gap[both].sum()),
        "reward/total": float(rollouts.rewards.sum()),
        "rollout/malformed_frac": float((~rollouts.valid).sum()),
        "rollout/empty_frac": float(rollouts.empty.sum()),
        "rollout/staleness": float((version - rollouts.policy_versions).sum()),
        "rollout/tokens_per_sample": float(rollouts.tokens),
    }


def _spread(values: Tensor, valid: Tensor) -> Tensor:
    """[B, 2] population standard deviation of the valid samples of each group, 0 where there are none."""
    kept, count = torch.where(valid, values, torch.zeros_like(values)), valid.sum(-1, keepdim=True).clamp_min(1)
    centered = torch.where(valid, values - kept.sum(-1, keepdim=True) / count, torch.zeros_like(values))
    return (centered.square().sum(-1) / count.squeeze(-1)).sqrt()


MEANS = {
    "reward/pointwise": "valid",
    "reward/pairwise": "gap_valid",
    "reward/total": "samples",
    "reward/no_signal_frac": "groups",
    "reward/group_std": "groups",
    "score/group_std": "groups",
    "rollout/malformed_frac": "samples",
    "rollout/empty_frac": "samples",
    "rollout/staleness": "samples",
    "rollout/tokens_per_sample": "samples",
    "loss/policy": "one",
    "loss/pointwise": "one",
    "loss/pairwise": "one",
    "loss/total": "one",
    "policy/kl": "tokens",
    "policy/clip_frac": "tokens",
    "policy/ratio_mean": "tokens",
    "score/entropy": "valid",
    "score/outside_mass": "valid",
}
"""Metric -> the sum it is divided by after adding over ranks ("one": the objective already divided by global
counts)."""


class GdsoObjective:
    """Eq. (14) on micro-batches of one step's rollouts. Denominators are global, so any split gives the same
    gradient."""

    def __init__(
        self,
        rollouts: PairRollouts,
        config: GdsoSection,
        totals: dict[str, float],
        length_limit: int | None = None,
        stale: bool = False,
    ) -> None:
        """totals: "samples", "tokens", "valid", "gap_valid" summed over all ranks. length_limit: tokens, for
        "fixed_length" only. stale: older weights than the learner's may have sampled; the ratio that is clipped is then
        learner / rollout, and nothing is left to correct. Else learner / learner before the update is clipped, and what
        the engine computed differently is weighed by `truncate_ratio`."""
        self.rollouts, self.config = rollouts, config
        self.bins = rollouts.bins
        # at least 1: a step of malformed outputs has loss 0, not 0 / 0
        self.valid_total, self.gap_total = max(totals["valid"], 1.0), max(totals["gap_valid"], 1.0)
        self.fixed_length = length_limit if config.token_aggregation == "fixed_length" else None
        self.policy_total = (
            totals["tokens"]
            if config.token_aggregation == "token_mean"
            else totals["samples"] * (self.fixed_length or 1)
        )
        self.stale = stale
        self.ratio_max_abs_diff = 0.0
        self._old: dict[int, Tensor] = {}  # unit -> learner log-probs at the first update: pi_old of the clipped ratio

    def __call__(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        c, device = self.config, outputs.logprobs.device
        shape = (len(units), 2, c.group_size)
        human_scores = self.rollouts.human_scores[units].to(device)
        valid = self.rollouts.valid[units].to(device)
        log_q = scores.score_log_distribution(outputs.score_logprobs).view(*shape, -1)
        mu = scores.expected_score(log_q, self.bins.to(device))
        targets = scores.label_targets(human_scores, c.pointwise_target, c.gaussian_std, self.bins.to(device))
        pointwise = (
            gdso.pointwise_terms(log_q, human_scores, self.bins.to(device), valid, targets).sum() / self.valid_total
        )
        pairwise = gdso.pairwise_gap_error(mu, human_scores, self.rollouts.score_range, valid).sum() / self.gap_total
        policy, metrics = self._policy(outputs, units, reference)
        loss = c.alpha_policy * policy + c.alpha_pointwise * pointwise + c.alpha_pairwise * pairwise
        if c.alpha_reward:
            # minus the mean reward, up to a constant, as a function of the learner's mu
            error = gdso.pointwise_error(mu, human_scores, self.rollouts.score_range)
            error = torch.where(valid, error, torch.zeros_like(error)).sum() / self.valid_total
            loss = loss + c.alpha_reward * (c.lambda_pointwise * error + c.lambda_pairwise * pairwise)
        with torch.no_grad():
            metrics |= {
                "loss/policy": float(policy),
                "loss/pointwise": float(pointwise),
                "loss/pairwise": float(pairwise),
                "loss/total": float(loss),
                "score/entropy": float(scores.score_entropy(log_q)[valid].sum()),
                "score/outside_mass": float(scores.outside_mass(outputs.score_logprobs).view(shape)[valid].sum()),
            }
        return loss, metrics

    def _policy(
        self, outputs: JudgeOutputs, units: list[int], reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """L_GRPO of Eq. (4), divided by the global count."""
        c, logprobs, mask = self.config, outputs.logprobs, outputs.mask
        rollout = self._rollout_logprobs(units, logprobs)
        # of stale outputs the learner's first log-probs are not pi_old: newer weights than those that sampled gave them
        old = rollout if self.stale else self._old_logprobs(units, logprobs)
        advantages = self.rollouts.advantages[units].reshape(-1).to(logprobs.device)
        terms, ratio = grpo.clipped_policy_terms(logprobs, old, advantages, mask, c.clip_low, c.clip_high, c.ratio)
        # two ratios: new / old is clipped (updates), old / rollout only weighs what the engine computed differently (1
        # where the rollout is old)
        correction = grpo.truncated_correction(old, rollout, c.truncate_ratio)
        terms = terms * torch.where(mask, correction, torch.ones_like(correction))
        mismatch = (torch.where(mask, logprobs.detach() - rollout, torch.zeros_like(rollout)).exp() - 1).abs().max()
        self.ratio_max_abs_diff = max(self.ratio_max_abs_diff, float(mismatch))
        metrics = {
            "policy/clip_frac": ratio["clip_frac"] * float(mask.sum()),
            "policy/ratio_mean": ratio["ratio_mean"] * float(mask.sum()),
        }
        if reference is not None:
            kl = grpo.kl_terms(logprobs, reference, c.kl_estimator, mask)
            metrics["policy/kl"] = float(kl.detach().sum())
            terms = terms + c.beta_kl * kl
        total, _ = grpo.aggregate_tokens(terms, mask, c.token_aggregation, self.fixed_length)
        return total / self.policy_total, metrics

    def _rollout_logprobs(self, units: list[int], like: Tensor) -> Tensor:
        """[N, T] engine log-probs of the units' samples, 0 at padding."""
        per_unit = 2 * self.config.group_size
        padded = torch.zeros_like(like, requires_grad=False)
        for n, (unit, k) in enumerate((u, k) for u in units for k in range(per_unit)):
            values = self.rollouts.rollout_logprobs[unit * per_unit + k]
            padded[n, : len(values)] = torch.from_numpy(values).to(padded)
        return padded

    def _old_logprobs(self, units: list[int], logprobs: Tensor) -> Tensor:
        """[N, T] learner log-probs before the first update on these rollouts."""
        per_unit, width = 2 * self.config.group_size, logprobs.shape[1]
        old = torch.zeros_like(logprobs, requires_grad=False)
        for i, unit in enumerate(units):
            rows = slice(i * per_unit, (i + 1) * per_unit)
            kept = self._old.setdefault(unit, logprobs[rows].detach().clone())
            shared = min(width, kept.shape[1])  # the padded width may differ from the first update's
            old[rows, :shared] = kept[:, :shared]
        return old


def mean_metrics(totals: dict[str, float]) -> dict[str, float]:
    """Means from sums over all ranks, by MEANS; a metric whose denominator is 0 is nan."""
    totals = totals | {"one": 1.0}
    return {n: totals[n] / totals[d] if totals.get(d) else float("nan") for n, d in MEANS.items() if n in totals}
