"""Configuration of `jobs/opd.py`: the reasoning student, its teacher and on-policy distillation."""

from __future__ import annotations

from pydantic import Field, model_validator

from zr_ray.config.risd import DistillationConfig
from zr_ray.config.sections import Section, field
from zr_ray.config.weights import Pushes, WeightsSection
from zr_ray.config.workers import RolloutSection


class OpdSection(Section):
    """Eq. (18)-(19)."""

    steps: int = field(100, "training steps", ge=1)
    questions_per_step: int = field(
        96, "questions of one step, one item in one dimension each; 48 GDSO pairs are 96 questions", ge=1
    )
    group_size: int = field(4, "outputs sampled per question", ge=1)


class OpdConfig(Pushes, DistillationConfig):
    """Configuration of `jobs/opd.py`."""

    rollout: RolloutSection = Field(default_factory=RolloutSection, description="the student's engines")
    opd: OpdSection = Field(default_factory=OpdSection)
    weights: WeightsSection = Field(default_factory=WeightsSection)

    @model_validator(mode="after")
    def _fits(self) -> OpdConfig:
        self.weights.check(self.rollout, self.learner)
        self.check_steps("opd", self.opd.steps, self.opd.questions_per_step, "questions_per_step")
        if self.weights.push_every_steps > 1:
            raise ValueError(
                f"weights.push_every_steps must be 1, got {self.weights.push_every_steps}: on-policy distillation has"
                " no older policy"
            )
        return self
