"""The `reward.refresh` section of `jobs/t2i.py`: when the student that rewards is held against its teacher on the
generator's newest images, and how it is distilled again where the two have drifted apart."""

from __future__ import annotations

from pydantic import Field, model_validator

from zr_ray.config.images import ImagesSection
from zr_ray.config.risd import LabelSection
from zr_ray.config.sections import Section, field
from zr_ray.config.workers import LearnerSection, RolloutSection


class RefreshTeacherSection(RolloutSection):
    """The teacher's engines. Half a core by default: they, a reader of images and the service's replica fit into the
    two cores that the smallest machine has."""

    cpus: float = field(0.5, "CPU cores reserved per engine", ge=0)


class RefreshSection(Section):
    """Off by default. Training waits while a look or a distillation goes on, and its actors' resources are used."""

    every_steps: int = field(
        0, "training steps between looks at the drift; 0: the reward stays the one it began with", ge=0
    )
    teacher: str = field(
        "teacher",
        "the judge that reasons, and that the student is distilled from: a name in zr_ray/assets, `latest` (the newest"
        " finished GDSO run's), a run id under run.root or a Hugging Face folder; not the run's referee",
    )
    pair_limit: float = field(
        0.65,
        "distil again when the student orders a smaller share of same-prompt pairs as its teacher does, all together or"
        " in a dimension that is weighted; the audit's limit",
        ge=0,
        le=1,
    )
    drop: float | None = field(
        0.1, "or when that share has fallen by so much since the best look at this version; null: not asked", gt=0, le=1
    )
    smallest_gain: float = field(
        0.01,
        "a new student is taken if it orders so many more of the pairs of prompts that it did not learn from; the best"
        " of several evaluations is a little lucky, so 0 would let noise in",
        ge=0,
        le=1,
    )
    most: int = field(4, "distillations of a run at most, those that were not taken included; then no more looks", ge=1)
    steps: int = field(300, "steps of a distillation at most", ge=1)
    items_per_step: int = field(48, "images of one of its steps, each in all dimensions", ge=1)
    evaluate_steps: int = field(20, "its steps between evaluations on prompts that it does not learn from", ge=1)
    patience: int = field(3, "evaluations in a row without a better order there, after which it ends", ge=1)
    images: ImagesSection = Field(
        default_factory=ImagesSection,
        description="how many images a look makes of this run's newest checkpoint; `of` is this run",
    )
    label: LabelSection = Field(
        default_factory=LabelSection, description="the teacher's labels; path null: in the run folder"
    )
    rollout: RefreshTeacherSection = Field(
        default_factory=RefreshTeacherSection, description="the teacher's engines, which run while training waits"
    )
    learner: LearnerSection = Field(
        default_factory=LearnerSection, description="what trains the student, while training waits"
    )

    @property
    def enabled(self) -> bool:
        """Whether the reward is looked at."""
        return self.every_steps > 0

    @model_validator(mode="after")
    def _fits(self) -> RefreshSection:
        if self.images.of is not None:
            raise ValueError(f"reward.refresh.images.of is this run itself, got {self.images.of}; leave it out")
        if self.label.path is not None and not self.label.path.is_absolute():
            raise ValueError(f"reward.refresh.label.path must be an absolute path, got {self.label.path}")
        if self.items_per_step < self.learner.workers:
            raise ValueError(
                "reward.refresh.items_per_step must be at least reward.refresh.learner.workers"
                f" ({self.learner.workers}), got {self.items_per_step}"
            )
        if self.learner.warmup_steps >= self.steps:
            raise ValueError(
                f"reward.refresh.learner.warmup_steps must be below reward.refresh.steps ({self.steps}), got"
                f" {self.learner.warmup_steps}"
            )
        return self
