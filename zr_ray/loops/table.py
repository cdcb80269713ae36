"""A table from runs of the ordinary jobs: every judge, row and seed, then rows with intervals and paired differences.

Order: judge after judge, and of each seed after seed with every row, so that what is there after an interruption can be
compared. A finished run is never repeated, an interrupted one is resumed. In the table's run folder:
rows/<row>-<judge>-s<seed>/ the runs, logs/, data/, table.json, table.md, curves.png and speed.json. table.at_once runs
share the machine, all of them alike; Ray holds back what does not fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.evaluate import EvaluateConfig
from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config
from zr_ray.config.opd import OpdConfig
from zr_ray.config.risd import RisdConfig
from zr_ray.config.sft import SftConfig
from zr_ray.config.table import RowChoice, TableConfig
from zr_ray.data.annotations import read_annotations
from zr_ray.data.load import require_judge
from zr_ray.data.run_data import load_run_data
from zr_ray.errors import CheckpointError
from zr_ray.loops.distillation import find_teacher, settle_teacher, shared_rubric, write_teacher
from zr_ray.models.judge_text import judge_folder
from zr_ray.rubric import ScoringFormat
from zr_ray.run.folder import RunFolder, default_root
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.run.result import value_text
from zr_ray.run.table_rows import RowRun, run_missing
from zr_ray.world.build import data_folder

CONFIG_CLASSES = {
    "evaluate": EvaluateConfig,
    "sft": SftConfig,
    "gdso": GdsoConfig,
    "opd": OpdConfig,
    "risd": RisdConfig,
}
FROM_TEACHER = ("opd", "risd")
"""Jobs that take a teacher."""


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    judges: dict[str, Path]
    """Size name -> folder."""
    teacher: Path | None


def make_table(job: str, config: TableConfig, args: argparse.Namespace, jobs: Path) -> None:
    """Run what is missing, measure speed, write and print the table; with --dry-run print the command lines only.

    Args: job: name of the run folder. jobs: folder of the job files.
    Raises: CheckpointError if runs failed, after the table of those that did not; ConfigError, JudgeError before
    anything starts."""
    launch(
        job,
        config,
        args.dry_run,
        lambda resumed: _check(config, jobs, resumed),
        lambda found, started: _make(config, jobs, found, started),
    )


def _check(config: TableConfig, jobs: Path, resumed: RunFolder | None) -> Plan[_Found]:
    """The runs ask Ray for what they need themselves, each in its turn: there are no bundles."""
    root = Path(config.run.root) if config.run.root else default_root()
    taught = any(choice.job in FROM_TEACHER for choice in config.table.rows.values())
    teacher = settle_teacher(resumed, find_teacher(config.teacher.path, root)) if taught else None
    judges = {name: judge_folder(path) for name, path in config.table.judges.items()}
    for judge in judges.values():
        require_judge(config.data.path, ScoringFormat.load(judge).rubric)
        if teacher is not None:
            shared_rubric(teacher, judge)
    if config.data.path is not None:
        load_run_data(config.data.path, "test")  # refuses what every one of its runs would refuse
    folder = resumed.path if resumed else Path("TABLE").absolute()
    runs = row_runs(config, folder, config.data.path or Path("DATA"), judges, teacher, jobs / "configs")
    return Plan(_Found(judges, teacher), {run.name: " ".join(run.command(jobs)[1:]) for run in runs})


def _make(config: TableConfig, jobs: Path, found: _Found, started: Started) -> None:
    c, folder, started_at = config.table, started.run, started.started_at
    judges, teacher = found.judges, found.teacher
    if teacher is not None:
        write_teacher(folder, teacher)
    say(
        f"rows start from {', '.join(f'{name} {path}' for name, path in judges.items())}"
        + (f"; teacher {teacher}" if teacher else "")
    )
    data = data_folder(config.data, folder.path)
    runs = row_runs(config, folder.path, data, judges, teacher, jobs / "configs")
    failed = _run_missing(runs, config, folder, data, jobs, started_at)

    from zr_ray.report.comparison_curves import write_curves
    from zr_ray.report.comparison_page import table_of, write_table

    speed = _speeds(config, folder, runs, teacher, jobs) if c.speed_images else {}
    test = list(read_annotations(data, split="test"))
    say(write_table(folder, table_of(runs, test, config, speed)))
    write_curves(folder, runs, test, config)
    done = len([run for run in runs if run.finished])
    say(
        f"{done} of {len(runs)} runs; {duration(time.time() - started_at)}; {folder.path / 'table.md'},"
        f" {folder.path / 'curves.png'}"
    )
    if failed:
        raise CheckpointError(
            f"{len(failed)} runs failed: {', '.join(failed)}; see {folder.path / 'logs'}, then go on with --resume"
            f" {folder.path}"
        )


def row_runs(
    config: TableConfig, root: Path, data: Path, judges: dict[str, Path], teacher: Path | None, configs: Path
) -> list[RowRun]:
    """Every run, in order. Args: judges: size name -> folder.   Raises ConfigError if one of their configurations does
    not load."""
    c, rows = config.table, root / "rows"
    runs = []
    seeds = sorted({seed for choice in c.rows.values() for seed in choice.seeds or c.seeds})
    for size, judge in judges.items():
        for seed in seeds:
            for row, choice in c.rows.items():
                if seed not in (choice.seeds or c.seeds) or (choice.judges and size not in choice.judges):
                    continue
                name = f"{row}-{size}-s{seed}"
                start = rows / f"{choice.of}-{size}-s{seed}" / "judge" if choice.of else judge
                folder = training_data(choice, root, data)
                overrides = (
                    f"run.root={rows}",
                    f"run.name={name}",
                    f"run.seed={seed}",
                    f"judge.path={start}",
                    f"data.path={folder}",
                    *(("evaluation.before=false", *c.overrides) if choice.job != "evaluate" else ()),
                    *((f"teacher.path={teacher}",) if choice.job in FROM_TEACHER else ()),
                    *choice.overrides,
                )
                named = configs / choice.config if choice.config else None
                load_config(CONFIG_CLASSES[choice.job], named, list(overrides))
                runs.append(RowRun(row, size, seed, choice.job, rows / name, named, overrides))
    return runs


def anchors_folder(root: Path) -> Path:
    """Where the training data with labels of five levels lies."""
    return root / "data-anchors"


def chains_folder(root: Path, chain_errors: float) -> Path:
    """Where the training data with chains of a fallible annotator lies."""
    return root / f"data-chains-{chain_errors:g}"


def training_data(choice: RowChoice, root: Path, data: Path) -> Path:
    """What a row trains on: the table's data, or a changed copy of it."""
    if choice.anchors:
        return anchors_folder(root)
    return chains_folder(root, choice.chain_errors) if choice.chain_errors else data


def write_changed_data(rows: Iterable[RowChoice], root: Path, data: Path) -> list[str]:
    """Make the copies that rows train on, if they are not there. Returns: a line of the log for each."""
    from zr_ray.data.anchors import write_anchor_labels
    from zr_ray.world.fallible_chains import write_fallible_chains

    rows, told = list(rows), []
    if any(choice.anchors for choice in rows):
        changed = write_anchor_labels(data, anchors_folder(root))
        told.append(f"{changed} training labels rounded down to anchors for rows without half-points")
    for rate in sorted({choice.chain_errors for choice in rows if choice.chain_errors}):
        wrong, words = write_fallible_chains(data, chains_folder(root, rate), rate)
        told.append(f"{wrong} of {words} findings in training chains made wrong for rows of a fallible annotator")
    return told


def _run_missing(
    runs: Sequence[RowRun], config: TableConfig, folder: RunFolder, data: Path, jobs: Path, started_at: float
) -> list[str]:
    """Run what has no result yet; returns the names of those that failed."""
    c = config.table
    for line in write_changed_data(c.rows.values(), folder.path, data):
        say(line)
    return run_missing(
        runs,
        jobs,
        folder,
        c.at_once,
        None if c.stop_after_s is None else started_at + c.stop_after_s,
        lambda run: f"HPA {value_text(run.result()['rows'][-1]['pooled'], 'hpa')}",
        lambda run: bool(c.rows[run.row].of),  # what starts from another run's judge comes after all of those
    )


def _speeds(
    config: TableConfig, folder: RunFolder, runs: Sequence[RowRun], teacher: Path | None, jobs: Path
) -> dict[str, dict]:
    """Row name -> figures of `judge_speed`, of its first finished run: after reasoning on vLLM, or all dimensions in
    one forward."""
    from zr_ray.judging.speed import measure

    path, c = folder.path / "speed.json", config.table
    known = json.loads(path.read_text()) if path.is_file() else {}
    wanted = {"teacher": (teacher, "teacher")} if teacher else {}
    for run in reversed(runs):
        if run.finished and run.job != "evaluate":
            wanted[run.row] = (run.folder / "judge", "teacher" if run.job in ("gdso", "opd") else "student-one-forward")
    for row, (judge, part) in wanted.items():
        if row not in known:
            say(f"seconds per score of {row}")
            words = {"teacher": str(judge), "student": str(judge), "images": c.speed_images, "threads": c.speed_threads}
            args = argparse.Namespace(**words, batch=min(32, c.speed_images), turns=3, gpus=0, parts=[part])
            flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
            known[row] = measure(args, [sys.executable, str(jobs / "bench" / "judge.py"), *flags])[part]
            folder.write_json("speed.json", known)
    return known
