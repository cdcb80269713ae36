"""The runs that a table is made of: where each lies, whether it is finished, the command line that makes it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.table import RowChoice
from zr_ray.run.folder import CONFIG_FILE, RESULT_FILE


@dataclass(frozen=True)
class RowRun:
    """One run of one job: a row of a judge with a seed."""

    row: str
    judge: str
    """Size name."""
    seed: int
    job: str
    folder: Path
    config: Path | None
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.row}-{self.judge}-s{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return (self.folder / RESULT_FILE).is_file()

    def result(self) -> dict:
        """Content of the run's result.json."""
        return json.loads((self.folder / RESULT_FILE).read_text())

    def command(self, jobs: Path) -> list[str]:
        """The job's command line; resumes what was interrupted."""
        named = ["--config", str(self.config)] if self.config else []
        resume = ["--resume", str(self.folder)] if (self.folder / CONFIG_FILE).is_file() else []
        return [sys.executable, str(jobs / f"{self.job}.py"), *named, *resume, *self.overrides]


def base_rows(rows: dict[str, RowChoice]) -> list[str]:
    """Rows that train nothing: one run of them stands for every seed."""
    return [name for name, choice in rows.items() if choice.job == "evaluate" and not choice.of]
