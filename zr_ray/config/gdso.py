"""Configuration of `jobs/gdso.py`: Algorithm 1 on annotated pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from zr_ray.config.sections import Section, field
from zr_ray.config.training import TrainingConfig


class GdsoSection(Section):
    """Algorithm 1 and Eq. (3)-(14)."""

    steps: int = field(60, "training steps, all outer iterations together", ge=1)
    reference_refresh_steps: int = field(
        20, "length of one outer iteration in steps; at its start the reference becomes the policy", ge=1
    )
    pairs_per_step: int = field(48, "B: same-prompt pairs of one step; 2 sides x group_size outputs each", ge=1)
    group_size: int = field(4, "G: outputs sampled per image and dimension", ge=2, why="for a group baseline")
    unscored_steps: int = field(
        2,
        "steps in a row without one scored output after which the run stops as FAILED; such a step is not trained on",
        ge=1,
    )
    updates_per_rollout: int = field(1, "K_gdso: optimizer updates on one step's rollouts; 1 is on-policy", ge=1)
    max_staleness: int = field(
        0,
        "versions by which the weights that train on an output may be newer than those that sampled it: engines sample"
        " so many steps ahead while the learner trains; 0 samples each step with its own weights, before it is trained",
        ge=0,
    )
    collect_frac: float = field(
        1.0,
        "part of its pairs that a step waits for; what is not back when the learner is ready is trained on in the next"
        " step. Below 1 it takes one of max_staleness",
        gt=0,
        le=1,
    )
    collect_parts: int = field(
        1,
        "with max_staleness: engine calls that a step's rollouts are cut into, per engine. A call comes back with its"
        " longest output: more parts come back sooner, and decode fewer sequences together",
        ge=1,
    )
    lambda_pointwise: float = field(1.0, "weight of the pointwise reward, Eq. (13)", ge=0)
    lambda_pairwise: float = field(1.0, "weight of the pairwise reward, Eq. (13)", ge=0)
    alpha_pointwise: float = field(1.0, "weight of the pointwise loss L_CE, Eq. (14)", ge=0)
    alpha_pairwise: float = field(0.5, "weight of the pairwise loss L_pw, Eq. (14)", ge=0)
    alpha_policy: float = field(
        1.0,
        "weight of L_GRPO, Eq. (4), with its KL term, in Eq. (14); 0 shows what the direct losses, or alpha_reward, do"
        " alone. Departs from the paper unless 1",
        ge=0,
    )
    alpha_reward: float = field(
        0.0,
        "weight of the reward's own gradient: rewards are functions of mu, so grad E[r] has the part E[grad r(mu)] that"
        " policy gradient drops; 0 is GRPO. Departs from the paper unless 0",
        ge=0,
    )
    beta_kl: float = field(0.01, "weight of KL(policy || reference), Eq. (4); 0 drops the reference model", ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = field(
        "k3", "per-token KL estimator; k3 = exp(d) - d - 1 is unbiased and never negative"
    )
    clip_low: float = field(0.2, "importance ratio is clipped below 1 - clip_low", ge=0, lt=1)
    clip_high: float = field(0.2, "importance ratio is clipped above 1 + clip_high", ge=0)
    truncate_ratio: float = field(2.0, "upper limit of the engine-mismatch weight learner / rollout", ge=1)
    advantage_eps: float = field(1e-4, "added to the group's standard deviation, Eq. (3)", gt=0)
    advantage_normalization: Literal["std", "none"] = field(
        "std", "divide by the group's standard deviation (Eq. 3), or center only"
    )
    ratio: Literal["token", "sequence"] = field("token", "importance ratio per token, or one geometric mean per output")
    token_aggregation: Literal["sequence_mean", "token_mean", "fixed_length"] = field(
        "sequence_mean",
        "average tokens per output first (GRPO), over all tokens of the batch (DAPO), or divide by"
        " rollout.max_new_tokens (Dr. GRPO)",
    )
    pointwise_target: Literal["hard", "two_hot", "gaussian"] = field(
        "hard", "target of L_CE: the annotated label (Eq. 8), linear interpolation between bins, or DeQA's Gaussian"
    )
    gaussian_std: float = field(
        0.5, "standard deviation of the Gaussian target, rubric points; about one annotator's noise", gt=0
    )
    score_from: Literal["expectation", "parsed"] = field(
        "expectation", "rewards from mu of the distribution, or from the sampled label (the paper's ablation)"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> GdsoSection:
        if not self.alpha_policy + self.alpha_reward + self.alpha_pointwise + self.alpha_pairwise:
            raise ValueError("gdso.alpha_policy 0 leaves no loss: give alpha_reward, alpha_pointwise or alpha_pairwise")
        if self.alpha_reward and not self.lambda_pointwise + self.lambda_pairwise:
            raise ValueError("gdso.alpha_reward needs a reward: lambda_pointwise or lambda_pairwise above 0")
        if self.lambda_pointwise + self.lambda_pairwise + self.alpha_pointwise + self.alpha_pairwise == 0:
            raise ValueError(
                "gdso.alpha_pointwise, alpha_pairwise, lambda_pointwise, lambda_pairwise must not all be 0: there is"
                " nothing to learn from"
            )
        return self

    @model_validator(mode="after")
    def _nothing_to_carry_over(self) -> GdsoSection:
        if self.collect_frac < 1 and self.max_staleness == 0:
            raise ValueError(
                "gdso.max_staleness must be at least 1 with gdso.collect_frac below 1, got 0: what a step leaves to the"
                " next one was sampled by older weights"
            )
        if self.collect_parts > 1 and self.max_staleness == 0:
            raise ValueError(
                f"gdso.collect_parts must be 1 with gdso.max_staleness 0, got {self.collect_parts}: a step then waits"
                " for all its rollouts at once"
            )
        return self


class GdsoConfig(TrainingConfig):
    """Configuration of `jobs/gdso.py`."""

    gdso: GdsoSection = Field(default_factory=GdsoSection)

    @property
    def sleeps(self) -> bool:
        """Whether engines give their GPU to the learner while it trains; not while they sample ahead."""
        return super().sleeps and self.gdso.max_staleness == 0

    @model_validator(mode="after")
    def _sections_fit(self) -> GdsoConfig:
        pairs, ranks = self.gdso.pairs_per_step, self.learner.workers
        if pairs % ranks:
            fitting = [str(n) for n in (pairs - pairs % ranks, pairs + ranks - pairs % ranks) if n > 0]
            raise ValueError(
                f"gdso.pairs_per_step must be a multiple of learner.workers ({ranks}), so that every rank averages over"
                f" the same number of pairs, got {pairs}; write {' or '.join(fitting)}"
            )
        updates = self.gdso.steps * self.gdso.updates_per_rollout
        if self.learner.warmup_steps >= updates:
            raise ValueError(
                f"learner.warmup_steps must be below the run's {updates} optimizer updates, got"
                f" {self.learner.warmup_steps}"
            )
        longest, room = self.rollout.max_new_tokens, self.learner.max_tokens_per_microbatch
        if room < longest:
            raise ValueError(
                f"learner.max_tokens_per_microbatch must hold one output of rollout.max_new_tokens = {longest}, got"
                f" {room}"
            )
        if self.gdso.max_staleness and self.weights.push_every_steps > 1:
            raise ValueError(
                "weights.push_every_steps must be 1 with gdso.max_staleness above 0, got"
                f" {self.weights.push_every_steps}: the bound counts versions, and every step makes one"
            )
        if self.rollout.sleep and self.gdso.max_staleness:
            raise ValueError(
                f"gdso.max_staleness must be 0 with rollout.sleep, got {self.gdso.max_staleness}: engines that sample"
                " while the learner trains cannot leave it their GPU"
            )
        if self.weights.push_every_steps > self.gdso.steps:
            raise ValueError(
                f"weights.push_every_steps must be at most gdso.steps ({self.gdso.steps}), got"
                f" {self.weights.push_every_steps}: the rollouts would never see an update"
            )
        return self
