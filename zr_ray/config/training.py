"""What jobs that train a judge on annotated pairs share: a base of their configurations."""

from __future__ import annotations

from pydantic import Field, model_validator

from zr_ray.config.sections import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    JudgeSection,
    Section,
    TrackedRunSection,
)
from zr_ray.config.weights import Pushes, WeightsSection
from zr_ray.config.workers import LearnerSection, RolloutSection


class TrainingConfig(Pushes, Section):
    """What jobs that train a judge on annotated pairs share."""

    run: TrackedRunSection = Field(default_factory=TrackedRunSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    data: DataSection = Field(default_factory=DataSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    weights: WeightsSection = Field(default_factory=WeightsSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)

    @model_validator(mode="after")
    def _transport_fits(self) -> TrainingConfig:
        self.weights.check(self.rollout, self.learner)
        return self
