"""Configuration of `jobs/chain.py`: which jobs follow one another, with which named runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from zr_ray.config.sections import RunSection, Section, field

STAGES = ("gdso", "risd", "evaluate_reward", "t2i")
"""In the order in which each takes what the one before it made."""


class StageSection(Section):
    """One job of the chain."""

    config: Path | None = field(None, "named run, relative to the jobs' configuration folder; null: the job's defaults")
    overrides: tuple[str, ...] = field((), "key=value on top of it")


class FitnessSection(Section):
    """jobs/evaluate_reward.py on the chain's student and the generator that is going to be trained."""

    arguments: tuple[str, ...] = field(("--guidance", "0"), "its switches, but --judge, --generator and --output")

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        taken = [word for word in arguments if word.split("=")[0] in ("--judge", "--generator", "--data", "--output")]
        if taken:
            raise ValueError(f"the chain gives --judge, --generator and --output itself, got {taken}; leave them out")
        return arguments


class ChainSection(Section):
    """The chain."""

    stages: tuple[str, ...] = field(STAGES, f"some of {', '.join(STAGES)}, in this order", min_length=1)
    judge: str | None = field(
        None, "judge folder or built-in name that takes the place of the student's when risd is left out"
    )
    teacher: Path | None = field(None, "GDSO run's judge folder for risd when gdso is left out")


class ChainConfig(Section):
    """Everything `jobs/chain.py` can be told."""

    run: RunSection = Field(default_factory=RunSection)
    chain: ChainSection = Field(default_factory=ChainSection)
    gdso: StageSection = Field(default_factory=StageSection)
    risd: StageSection = Field(default_factory=StageSection)
    evaluate_reward: FitnessSection = Field(default_factory=FitnessSection)
    t2i: StageSection = Field(default_factory=StageSection)

    @model_validator(mode="after")
    def _links(self) -> ChainConfig:
        stages = self.chain.stages
        if list(stages) != [name for name in STAGES if name in stages]:
            raise ValueError(f"chain.stages must be some of {', '.join(STAGES)} in this order, got {list(stages)}")
        if "risd" in stages and "gdso" not in stages and self.chain.teacher is None:
            raise ValueError("risd without gdso needs chain.teacher, the folder of a trained judge; set it")
        if set(stages) & {"evaluate_reward", "t2i"} and "risd" not in stages and self.chain.judge is None:
            raise ValueError("evaluate_reward and t2i without risd need chain.judge, a judge folder or name; set it")
        return self
