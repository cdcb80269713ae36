"""What `jobs/distill_table.py` can be told: which rows of the student's table, from which teacher, with which seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from zr_ray.config import DataSection, JudgeSection, RunSection, Section, _field
from zr_ray.config_risd import TeacherSection


class TableRow(Section):
    """One row: a named run of a training job."""

    job: Literal["sft", "gdso", "opd", "risd"] = _field("risd", "jobs/<job>.py")
    config: Path = _field(Path(), "the named run, relative to the jobs' configuration folder")
    overrides: tuple[str, ...] = _field((), "key=value on top of it")


class TableSection(Section):
    """The table."""

    rows: dict[str, TableRow] = _field({}, "row name -> named run, in the order of the table")
    seeds: tuple[int, ...] = _field((0, 1, 2), "training seeds of every row", min_length=1)
    overrides: tuple[str, ...] = _field((), "key=value for every run, before the row's own")
    claims: tuple[tuple[str, str], ...] = _field((), "pairs of row names, better first; `teacher` names the teacher's row")
    teacher_margin: float = _field(0.02, "RISD rows must come this close to their teacher's HPA, as a fraction", ge=0)
    speed_images: int = _field(64, "images of one timed turn for the seconds per score; 0: not measured", ge=0)
    speed_threads: int = _field(1, "OMP threads of the timed judges", ge=1)
    bootstrap_resamples: int = _field(2000, "resamples over prompts for every interval", ge=20)
    stop_after_s: float | None = _field(None, "start no further run after so many seconds; --resume goes on; null: no limit", gt=0)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
            raise ValueError(f"must be different numbers from 0 up, got {list(seeds)}")
        return seeds

    @field_validator("rows")
    @classmethod
    def _folder_names(cls, rows: dict) -> dict:
        for name in rows:
            if name == "teacher" or not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ValueError(f"names become folders, and `teacher` is taken: letters, digits, dots, dashes, underscores, got {name!r}")
        return rows

    @model_validator(mode="after")
    def _claims_name_rows(self) -> TableSection:
        unknown = {name for claim in self.claims for name in claim} - set(self.rows) - {"teacher"}
        if unknown:
            raise ValueError(f"table.claims must name rows, got {sorted(unknown)}; rows are {', '.join(self.rows)}")
        return self


class TableConfig(Section):
    """Everything `jobs/distill_table.py` can be told."""

    run: RunSection = Field(default_factory=RunSection)
    judge: JudgeSection = Field(default_factory=JudgeSection, description="where every row starts: the untrained student")
    teacher: TeacherSection = Field(default_factory=TeacherSection)
    data: DataSection = Field(default_factory=DataSection)
    table: TableSection = Field(default_factory=TableSection)
