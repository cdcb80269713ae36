"""Configuration of `jobs/evaluate.py`: which judge, which annotated set, how it is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from zr_ray.config.sections import DataSection, JudgeSection, RunSection, Section, field
from zr_ray.config.workers import RolloutSection


class EvaluateSection(Section):
    """How the judge is asked, and what is measured."""

    split: Literal["train", "dev", "test"] = field("test", "split that is judged")
    mode: Literal["both", "direct", "reasoning"] = field(
        "both", "read the score directly (one token), after a reasoning trace, or both"
    )
    samples: tuple[int, ...] = field(
        (0, 1, 2, 4, 8),
        "traces per question whose distributions are averaged, a row each; 0 is one greedy trace. The largest number is"
        " sampled once, smaller ones are its beginnings",
        min_length=1,
    )
    swap: bool = field(
        False, "also swap the reasoning traces of two items per prompt and dimension: how much does the score follow?"
    )
    items: int | None = field(None, "judge only the first so many images; null: all", ge=2)
    batch_items: int = field(256, "images sent to the rollout actors at a time", ge=1)
    bootstrap_resamples: int = field(1000, "resamples over prompts for each 95 % interval", ge=20)

    @field_validator("samples")
    @classmethod
    def _counts(cls, samples: tuple[int, ...]) -> tuple[int, ...]:
        if any(n < 0 for n in samples) or list(samples) != sorted(set(samples)):
            raise ValueError(f"must be different numbers from 0 up, ascending, got {list(samples)}")
        return samples


class EvaluateConfig(Section):
    """Configuration of `jobs/evaluate.py`."""

    run: RunSection = Field(default_factory=RunSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    data: DataSection = Field(default_factory=DataSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
