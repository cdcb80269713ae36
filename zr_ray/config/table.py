"""Configuration of a table job (`jobs/reproduce.py`, `jobs/distill_table.py`): which judges, rows and seeds, with which
claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zr_ray.config.risd import TeacherSection
from zr_ray.config.sections import DataSection, RunSection, Section, field

TEACHER = "teacher"
"""The teacher's row; runs that have one judge the held-out set with it."""


class RowChoice(Section):
    """One row: a named run of a job."""

    job: Literal["evaluate", "sft", "gdso", "opd", "risd"] = field("gdso", "jobs/<job>.py")
    config: Path | None = field(
        None, "the named run, relative to the jobs' configuration folder; null: the job's defaults"
    )
    overrides: tuple[str, ...] = field((), "key=value on top of it")
    judges: tuple[str, ...] = field((), "only for these judges; empty: for all")
    seeds: tuple[int, ...] = field((), "training seeds instead of table.seeds")
    anchors: bool = field(False, "train on labels rounded down to the five rubric anchors (no half-points)")
    chain_errors: float = field(
        0.0,
        "train on reasoning chains of a fallible annotator: share of the words that name a finding that are replaced"
        " by another of their kind; built-in world only, where the annotator is the oracle. 0: as the data has them",
        ge=0,
        le=1,
    )
    of: str = field(
        "",
        "start from the trained judge of this row, same judge and seed, instead of the base; such a row is no row of"
        " the table",
    )

    @model_validator(mode="after")
    def _one_change(self) -> RowChoice:
        if self.anchors and self.chain_errors:
            raise ValueError("anchors and chain_errors change the same training data; give each a row of its own")
        return self


class RunsSection(Section):
    """What tables of any job's runs share."""

    seeds: tuple[int, ...] = field((0, 1, 2), "training seeds of every row", min_length=1)
    at_once: int = field(
        1,
        "runs at the same time; more finish sooner, but their minutes and speeds are then those of a shared machine",
        ge=1,
    )
    stop_after_s: float | None = field(
        None, "start no further run after so many seconds; --resume goes on; null: no limit", gt=0
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
            raise ValueError(f"must be different numbers from 0 up, got {list(seeds)}")
        return seeds


class TableSection(RunsSection):
    """The table."""

    judges: dict[str, str] = field({"base": "builtin"}, "size name -> base judge that rows start from", min_length=1)
    rows: dict[str, RowChoice] = field({}, "row name -> named run, in the order of the table")
    overrides: tuple[str, ...] = field((), "key=value for every training run, before the row's own")
    claims: tuple[tuple[str, str], ...] = field(
        (), "pairs of row names, better first; `teacher` names the teacher's row"
    )
    teacher_margin: float = field(
        0.02, "a claim against the teacher says: at most so far below its HPA, as a fraction", ge=0
    )
    speed_images: int = field(0, "images of one timed turn for the seconds per score; 0: not measured", ge=0)
    speed_threads: int = field(1, "OMP threads of the timed judges", ge=1)
    bootstrap_resamples: int = field(2000, "resamples over prompts for every interval", ge=20)

    @field_validator("rows", "judges")
    @classmethod
    def _folder_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if name == TEACHER or not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ValueError(
                    "names become folders, and `teacher` is taken: letters, digits, dots, dashes, underscores, got"
                    f" {name!r}"
                )
        return named

    @model_validator(mode="after")
    def _names_exist(self) -> TableSection:
        wanted = {
            "table.claims": {name for claim in self.claims for name in claim} - {TEACHER},
            "table.rows.*.of": {choice.of for choice in self.rows.values() if choice.of},
        }
        for key, names in wanted.items():
            if names - set(self.rows):
                raise ValueError(
                    f"{key} must name rows, got {sorted(names - set(self.rows))}; rows are {', '.join(self.rows)}"
                )
        unknown = {name for choice in self.rows.values() for name in choice.judges} - set(self.judges)
        if unknown:
            raise ValueError(
                f"table.rows.*.judges must name judges, got {sorted(unknown)}; judges are {', '.join(self.judges)}"
            )
        return self


class TableConfig(Section):
    """Configuration of a table job."""

    run: RunSection = Field(default_factory=RunSection)
    teacher: TeacherSection = Field(
        default_factory=TeacherSection, description="of rows whose job is opd or risd; not looked for otherwise"
    )
    data: DataSection = Field(default_factory=DataSection)
    table: TableSection = Field(default_factory=TableSection)
