"""Configuration of `jobs/risd.py`: the student, its teacher, the teacher's labels and the distillation. `config/opd.py`
shares its sections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from zr_ray.config.images import ImagesSection
from zr_ray.config.sections import (
    CheckpointSection,
    DataSection,
    EvaluationSection,
    JudgeSection,
    Section,
    TrackedRunSection,
    field,
)
from zr_ray.config.workers import LearnerSection, RolloutSection


class TeacherSection(Section):
    """The frozen judge that reasons."""

    path: str = field(
        "latest",
        "`latest` (the judge of the newest finished GDSO run under run.root), `builtin`, a run id under run.root, or a"
        " Hugging Face folder",
    )


class LabelSection(Section):
    """Teacher labels of training and evaluation items, made once and kept."""

    path: Path | None = field(
        None,
        "absolute folder of the label set; null: <run.root>/labels/<hash of teacher, template, sampling>, shared by"
        " runs that agree",
    )
    traces: int = field(
        1,
        "m: reasoning traces per item and dimension whose distributions are averaged; 1 is the paper; 0 one greedy"
        " trace",
        ge=0,
    )
    seed: int = field(
        0,
        "seeds the traces, by item content; independent of run.seed, so runs of several seeds share labels",
        ge=0,
        lt=2**31,
    )
    batch_items: int = field(
        64, "items of one request to an engine and of one Parquet part; what a dead worker makes again", ge=1
    )


class RisdSection(Section):
    """Algorithm 2 and Eq. (15)."""

    steps: int = field(200, "training steps; one costs less than a tenth of a GDSO step, nothing is generated", ge=1)
    items_per_step: int = field(48, "items of one step, each in all dimensions", ge=1)
    mode: Literal["offline", "online"] = field(
        "offline",
        "offline: labels first, then no engine; online: the teacher is asked for every batch (Algorithm 2). Same loss"
        " on the same data",
    )
    temperature: float = field(
        1.0, "of the teacher's distribution; above 1 flattens it. Departs from the paper unless 1", gt=0
    )
    label_weight: float = field(
        0.0,
        "share of the human score in the target, where an item has one. Departs from the paper unless 0",
        ge=0,
        le=1,
    )
    patience: int = field(
        0,
        "evaluations in a row without a better order inside prompts, as the teacher has it, on prompts that the student"
        " does not learn from; then training stops and the best student is handed out. 0: all steps, the last one",
        ge=0,
    )


class DistillationConfig(Section):
    """What jobs that train a student of a teacher share."""

    run: TrackedRunSection = Field(default_factory=TrackedRunSection)
    judge: JudgeSection = Field(
        default_factory=JudgeSection,
        description="where the student starts; path `teacher`: from the teacher; `latest`: from the newest finished"
        " RISD run under run.root, or from `student` where there is none",
    )
    teacher: TeacherSection = Field(default_factory=TeacherSection)
    data: DataSection = Field(default_factory=DataSection)
    images: ImagesSection = Field(
        default_factory=ImagesSection,
        description="images that a generator makes now; with data.path they join its images, without it they are all",
    )
    label: LabelSection = Field(default_factory=LabelSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)

    @model_validator(mode="after")
    def _label_path(self) -> DistillationConfig:
        if self.label.path is not None and not self.label.path.is_absolute():
            raise ValueError(
                f"label.path must be an absolute path, got {self.label.path}: a job runs in a copy of the working"
                " directory"
            )
        return self

    def check_steps(self, name: str, steps: int, per_step: int, what: str) -> None:
        """Raises ValueError unless every rank gets an item and the warm-up ends before the run does."""
        if per_step < self.learner.workers:
            raise ValueError(f"{name}.{what} must be at least learner.workers ({self.learner.workers}), got {per_step}")
        if self.learner.warmup_steps >= steps:
            raise ValueError(
                f"learner.warmup_steps must be below {name}.steps ({steps}), got {self.learner.warmup_steps}"
            )


class RisdConfig(DistillationConfig):
    """Configuration of `jobs/risd.py`."""

    rollout: RolloutSection = Field(default_factory=RolloutSection, description="the teacher's engines")
    risd: RisdSection = Field(default_factory=RisdSection)

    @model_validator(mode="after")
    def _fits(self) -> RisdConfig:
        self.check_steps("risd", self.risd.steps, self.risd.items_per_step, "items_per_step")
        if self.risd.patience and not self.evaluation.every_steps:
            raise ValueError("risd.patience counts evaluations: evaluation.every_steps must be above 0, got 0")
        return self
