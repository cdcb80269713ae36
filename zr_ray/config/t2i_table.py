"""Configuration of `jobs/t2i_table.py`: which algorithms, at which budget, with which seeds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from zr_ray.config.sections import RunSection, Section, field
from zr_ray.config.table import RunsSection


class T2iTableSection(RunsSection):
    """The table."""

    config: Path = field(Path("t2i_tiny.yaml"), "the named run of every row, relative to the configuration folder")
    overrides: tuple[str, ...] = field((), "key=value for every run, before the row's own: the budget, for instance")
    rows: dict[str, tuple[str, ...]] = field(
        {"nft": ()}, "row name -> its key=value, in the order of the table", min_length=1
    )
    extends: Path | None = field(
        None,
        "folder of a table with smaller budgets: finished runs of the same row and seed are copied and go on from their"
        " last checkpoint, instead of beginning anew",
    )
    beside: tuple[str, ...] = field(
        (), "rows whose first run also measures the untrained generator with guidance, best of several, twice the steps"
    )

    @field_validator("rows")
    @classmethod
    def _folder_names(cls, rows: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in rows:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
                raise ValueError(f"names become folders: letters, digits, dots, dashes, underscores, got {name!r}")
        return rows


class T2iTableConfig(Section):
    """Configuration of the table job."""

    run: RunSection = Field(default_factory=RunSection)
    table: T2iTableSection = Field(default_factory=T2iTableSection)
