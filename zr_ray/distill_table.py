"""The paper's table 3 at the student's size: runs of the ordinary jobs, one after another, then one table with paired differences.

Order: seed after seed with every row, so that what is there after an interruption can be compared. A finished run is never repeated, an
interrupted one is resumed. In the table's run folder: rows/<row>-s<seed>/ the runs, logs/, speed.json, table.json and table.md.
Left out on purpose: running rows at the same time; they would share the cores that their seconds are measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from zr_ray import driver
from zr_ray.config import GdsoConfig
from zr_ray.config_distill_table import TableConfig
from zr_ray.config_loader import load_config
from zr_ray.config_opd import OpdConfig
from zr_ray.config_risd import RisdConfig
from zr_ray.config_sft import SftConfig
from zr_ray.data.load import data_folder, load_split
from zr_ray.distillation import find_teacher, settle_teacher
from zr_ray.errors import CheckpointError
from zr_ray.models.judge import judge_folder
from zr_ray.observe import duration, say
from zr_ray.run_folder import CONFIG_FILE, RESULT_FILE, RunFolder, default_root

CONFIG_CLASSES = {"sft": SftConfig, "gdso": GdsoConfig, "opd": OpdConfig, "risd": RisdConfig}
FROM_TEACHER = ("opd", "risd")
"""Jobs that take a teacher."""


@dataclass(frozen=True)
class RowRun:
    """One run of one job: a row with a seed."""

    row: str
    seed: int
    job: str
    folder: Path
    config: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.row}-s{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT_FILE).is_file()

    def command(self, jobs: Path) -> list[str]:
        """The job's command line; resumes what was interrupted."""
        resume = ["--resume", str(self.folder)] if (self.folder / CONFIG_FILE).is_file() else []
        return [sys.executable, str(jobs / f"{self.job}.py"), "--config", str(self.config), *resume, *self.overrides]


def make_table(config: TableConfig, args: argparse.Namespace, jobs: Path) -> None:
    """Run what is missing, measure speed, write and print the table; with --dry-run print the command lines only.

    Args: jobs: folder of the job files.   Raises: CheckpointError if runs failed, after the table of those that did not."""
    started_at, c = time.time(), config.table
    root = Path(config.run.root) if config.run.root else default_root()
    teacher, judge = find_teacher(config.teacher.path, root), judge_folder(config.judge.path)
    if args.dry_run:
        for run in row_runs(config, Path("TABLE"), Path("DATA"), judge, teacher, jobs / "configs"):
            say(" ".join(run.command(jobs)[1:]))
        return
    driver.connect(namespace="zr_ray")
    folder = RunFolder.start(config, "distill-table")
    teacher = settle_teacher(folder, teacher)
    say(f"folder {folder.path}; teacher {teacher}; student starts from {judge}")
    data = data_folder(config.data, folder.path)
    runs = row_runs(config, folder.path, data, judge, teacher, jobs / "configs")
    failed = []
    for n, run in enumerate(runs, start=1):
        if c.stop_after_s is not None and time.time() - started_at > c.stop_after_s:
            say(f"stopped before {run.name} after {duration(time.time() - started_at)} (table.stop_after_s); --resume goes on")
            break
        if not run.finished and not _run(run, jobs, folder, f"{n}/{len(runs)}"):
            failed.append(run.name)

    from zr_ray.distill_page import table_of, write_table

    speed = _speeds(config, folder, runs, teacher, jobs) if c.speed_images else {}
    table = table_of(runs, load_split(data, "test"), config, speed)
    say(write_table(folder, table))
    say(f"{len([r for r in runs if r.finished])} of {len(runs)} runs; {duration(time.time() - started_at)}; {folder.path / 'table.md'}")
    if failed:
        raise CheckpointError(
            f"{len(failed)} runs failed: {', '.join(failed)}; see {folder.path / 'logs'}, then go on with --resume {folder.path}"
        )


def row_runs(config: TableConfig, root: Path, data: Path, judge: Path, teacher: Path, configs: Path) -> list[RowRun]:
    """Every run, in order. Raises ConfigError if one of their configurations does not load."""
    runs = []
    for seed in config.table.seeds:
        for row, choice in config.table.rows.items():
            name, own = f"{row}-s{seed}", [f"teacher.path={teacher}"] if choice.job in FROM_TEACHER else []
            overrides = (
                f"run.root={root / 'rows'}", f"run.name={name}", f"run.seed={seed}", f"judge.path={judge}", f"data.path={data}",
                "evaluation.before=false", *own, *config.table.overrides, *choice.overrides,
            )  # fmt: skip
            run = RowRun(row, seed, choice.job, root / "rows" / name, configs / choice.config, overrides)
            if root.is_absolute():
                load_config(CONFIG_CLASSES[run.job], run.config, list(overrides))
            runs.append(run)
    return runs


def _run(run: RowRun, jobs: Path, folder: RunFolder, place: str) -> bool:
    """Run one job to its end with its output in a log file. Returns whether it finished."""
    import ray

    log = folder.path / "logs" / f"{run.name}.log"
    log.parent.mkdir(exist_ok=True)
    say(f"{place} {run.name}: log {log}")
    start = time.time()
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(jobs.parent)}
    with open(log, "a") as file:
        code = subprocess.run(
            run.command(jobs), check=False, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=jobs.parent
        ).returncode
    pooled = json.loads((run.folder / RESULT_FILE).read_text())["rows"][-1]["pooled"] if run.finished else {}
    result = f"HPA {pooled['hpa']:.3f}" if pooled else f"FAILED with code {code}: {log.read_text().splitlines()[-1:]}"
    say(f"{place} {run.name}: {result}, {duration(time.time() - start)}")
    return run.finished


def _speeds(config: TableConfig, folder: RunFolder, runs: list[RowRun], teacher: Path, jobs: Path) -> dict[str, dict]:
    """Row name -> figures of `judge_speed`, of its first finished seed: after reasoning on vLLM, or four dimensions in one forward."""
    from zr_ray.judge_speed import measure

    path, c = folder.path / "speed.json", config.table
    known = json.loads(path.read_text()) if path.is_file() else {}
    wanted = {"teacher": (teacher, "teacher")}
    for run in reversed(runs):
        if run.finished:
            wanted[run.row] = (run.folder / "judge", "teacher" if run.job in ("gdso", "opd") else "student-one-forward")
    for row, (judge, part) in wanted.items():
        if row not in known:
            say(f"seconds per score of {row}")
            words = {"teacher": str(judge), "student": str(judge), "images": c.speed_images, "threads": c.speed_threads}
            args = argparse.Namespace(**words, batch=min(32, c.speed_images), turns=3, gpus=0, parts=[part])
            flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
            known[row] = measure(args, [sys.executable, str(jobs / "bench_judge.py"), *flags])[part]
            folder.write_json("speed.json", known)
    return known
