"""Configuration of `jobs/audit.py`: a student that is in use, its teacher, and the images it scores."""

from __future__ import annotations

from pydantic import Field

from zr_ray.config.images import ImagesSection
from zr_ray.config.risd import LabelSection, TeacherSection
from zr_ray.config.sections import DataSection, JudgeSection, RunSection, Section, field
from zr_ray.config.workers import RolloutSection, WorkerSection


class AuditSection(Section):
    """Which items the teacher is asked about, and when the student is no longer trusted."""

    split: str = field("train", "split of the data that is sampled; human scores are not used")
    items: int = field(200, "items the teacher is asked about", ge=2)
    pool_items: int = field(
        4000, "items the student scores first, drawn at random; the audited ones are drawn from them", ge=2
    )
    highest_frac: float = field(
        0.5,
        "share of the audited items drawn from the tenth that the student scores highest: what optimization against it"
        " produces",
        ge=0,
        le=1,
    )
    worst: int = field(12, "items with the largest difference that are listed with their images", ge=0)
    mu_gap_limit: float = field(
        0.5, "largest mean |mu student - mu teacher| of the random items, rubric points; one step of the scale", gt=0
    )
    bias_limit: float = field(
        0.5, "largest mean (mu student - mu teacher) of the highest-scored items, rubric points", gt=0
    )
    pair_limit: float = field(
        0.65,
        "smallest share of same-prompt pairs that the student orders as its teacher does; below it the report says to"
        " distil again. Ours: rewards that ordered .70 improved the built-in generator, those of .54 to .66 ruined it",
        ge=0,
        le=1,
    )
    bootstrap_resamples: int = field(1000, "resamples over prompts for each 95 % interval", ge=20)


class AuditConfig(Section):
    """Configuration of `jobs/audit.py`."""

    run: RunSection = Field(default_factory=RunSection)
    judge: JudgeSection = Field(
        default_factory=JudgeSection,
        description="the student under audit; path `latest`: the newest finished RISD run's, or `student`",
    )
    teacher: TeacherSection = Field(default_factory=TeacherSection)
    data: DataSection = Field(
        default_factory=DataSection, description="images that the student scores, for example a generator's newest"
    )
    images: ImagesSection = Field(
        default_factory=ImagesSection, description="or the images that a text-to-image run's generator makes now"
    )
    label: LabelSection = Field(default_factory=LabelSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="the teacher's engines")
    student: WorkerSection = Field(default_factory=WorkerSection, description="where the student's forward runs")
    audit: AuditSection = Field(default_factory=AuditSection)
