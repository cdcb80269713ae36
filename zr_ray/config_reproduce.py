"""What `jobs/reproduce.py` can be told: which judges, rows and seeds, with which budget."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from zr_ray.config import DataSection, RunSection, Section, _field


class JudgeChoice(Section):
    """One size of base judge."""

    path: str = _field("builtin", "`builtin` or a judge folder; relative paths start at the working directory")
    optional: bool = _field(False, "leave this size out, and say so, when its folder is not there")


class RowChoice(Section):
    """One row of the table: a named run of a training job."""

    job: Literal["gdso", "sft"] = _field("gdso", "jobs/<job>.py")
    config: Path = _field(Path(), "the named run, relative to the configuration folder of the jobs")
    overrides: tuple[str, ...] = _field((), "key=value on top of it")
    anchors: bool = _field(False, "train on labels rounded down to the five rubric anchors (no half-points)")


class ReproduceSection(Section):
    """The table."""

    judges: dict[str, JudgeChoice] = _field({"builtin": JudgeChoice()}, "size name -> base judge", min_length=1)
    rows: dict[str, RowChoice] = _field({}, "row name -> named run")
    seeds: tuple[int, ...] = _field((0, 1, 2), "training seeds of every row", min_length=1)
    steps: int = _field(60, "training steps of every row", ge=2)
    pairs_per_step: int = _field(48, "pairs per step of every row: all rows see the same pairs in the same order", ge=1)
    overrides: tuple[str, ...] = _field((), "key=value for every training run, before the row's own")
    probes: tuple[str, ...] = _field((), "rows whose trained judges are evaluated again, in full and with swapped traces")
    probe_overrides: tuple[str, ...] = _field((), "key=value for these evaluations (keys of jobs/evaluate.py)")
    bootstrap_resamples: int = _field(2000, "resamples over prompts for every interval", ge=20)
    stop_after_s: float | None = _field(None, "start no further run after so many seconds; --resume goes on; null: no limit", gt=0)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
            raise ValueError(f"must be different numbers from 0 up, got {list(seeds)}")
        return seeds

    @field_validator("judges", "rows")
    @classmethod
    def _folder_names(cls, named: dict) -> dict:
        for name in named:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ValueError(f"names become folders: letters, digits, dots, dashes and underscores only, got {name!r}")
        return named

    @model_validator(mode="after")
    def _probes_are_rows(self) -> ReproduceSection:
        unknown = set(self.probes) - set(self.rows)
        if unknown:
            raise ValueError(f"reproduce.probes must name rows, got {sorted(unknown)}; rows are {', '.join(self.rows)}")
        return self


class ReproduceConfig(Section):
    """Everything `jobs/reproduce.py` can be told."""

    run: RunSection = Field(default_factory=RunSection)
    data: DataSection = Field(default_factory=DataSection)
    reproduce: ReproduceSection = Field(default_factory=ReproduceSection)
