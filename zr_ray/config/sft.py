"""Configuration of `jobs/sft.py`: the supervised baselines, with or without reasoning chains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from zr_ray.config.sections import Section, field
from zr_ray.config.training import TrainingConfig


class SftSection(Section):
    """Supervised score learning."""

    steps: int = field(60, "training steps", ge=1)
    pairs_per_step: int = field(
        48, "same-prompt pairs a step; both sides are trained on, so SFT sees exactly the pairs that GDSO sees", ge=1
    )
    reasoning: bool = field(
        False, "false: SFT, one score token; true: RewardDance, post-hoc reasoning chains from the data, then the score"
    )
    target: Literal["hard", "two_hot", "gaussian"] = field(
        "hard", "score target: the annotated label, linear interpolation between bins, or DeQA's Gaussian"
    )
    gaussian_std: float = field(
        0.5, "standard deviation of the Gaussian target, rubric points; about one annotator's noise", gt=0
    )
    chain_weight: float = field(1.0, "weight of the reasoning tokens' mean log-loss beside the score token's", ge=0)


class SftConfig(TrainingConfig):
    """Configuration of `jobs/sft.py`."""

    sft: SftSection = Field(default_factory=SftSection)

    @model_validator(mode="after")
    def _fits(self) -> SftConfig:
        if self.sft.pairs_per_step % self.learner.workers:
            raise ValueError(
                f"sft.pairs_per_step must be a multiple of learner.workers ({self.learner.workers}), got"
                f" {self.sft.pairs_per_step}"
            )
        if self.learner.warmup_steps >= self.sft.steps:
            raise ValueError(
                f"learner.warmup_steps must be below sft.steps ({self.sft.steps}), got {self.learner.warmup_steps}"
            )
        return self
