"""From a checked configuration to a trained student: teacher, labels, learners, report. Shared by jobs/risd.py and
jobs/opd.py.

Order: everything that can be refused is refused, then Ray is joined, then the run folder and the data, then the teacher
labels what is not labelled yet, then its engines are gone and the learners start, with engines of their own if the loop
asks some.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zr_ray.config.risd import DistillationConfig
from zr_ray.data.labels import LabelSet, fingerprints
from zr_ray.data.load import data_folder, load_split
from zr_ray.errors import CheckpointError, DataError
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES, JudgeText, judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.run import driver
from zr_ray.run.folder import RESULT_FILE, RunFolder, default_root
from zr_ray.run.observe import duration, say

TEACHER_FILE = "teacher.json"
"""Folder and hash of the teacher of a run, in its run folder."""
Engines = Literal["none", "teacher", "student"]


@dataclass(frozen=True)
class DistillationTask:
    """What the driver hands to every learner rank."""

    config: DistillationConfig
    """The job's own subclass."""
    run_path: Path
    judge: Path
    """Where the student starts."""
    items: tuple[AnnotatedImage, ...]
    """Distillation items; their human scores are read only with risd.label_weight."""
    test: tuple[AnnotatedImage, ...]
    """The evaluation split."""
    labels: LabelSet
    """Teacher labels: of `test`, and of `items` where the loop reads them."""
    workers: tuple
    """Rollout actors with the teacher's or the student's weights, or none."""
    teacher: Path
    """The teacher's judge folder."""
    started_at: float
    """time.time() of the job's first line."""


def find_teacher(path: str, root: Path) -> Path:
    """The teacher's judge folder; see `teacher.path`. Raises CheckpointError if there is no finished GDSO run,
    JudgeError if no judge."""
    if path == "latest":
        finished = sorted(root.glob(f"*/{RESULT_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in finished:
            judge = file.parent / "judge"
            if (
                not file.parent.is_symlink()
                and json.loads(file.read_text())["job"] == "gdso"
                and (judge / "config.json").is_file()
            ):
                return judge_folder(str(judge))
        raise CheckpointError(
            f"teacher.path=latest needs a finished GDSO run under {root}, got none; run jobs/gdso.py, or name a judge"
        )
    run = root / path / "judge"
    return judge_folder(
        str(run) if path not in BUILTIN_JUDGES and not Path(path).is_absolute() and run.is_dir() else path
    )


def settle_teacher(run: RunFolder, teacher: Path) -> Path:
    """The teacher of this run: `latest` may mean another one when the run is resumed. Raises CheckpointError if the
    first is gone."""
    path, now = run.path / TEACHER_FILE, {"folder": str(teacher), "sha256": judge_hash(teacher)}
    if not path.is_file():
        run.write_json(TEACHER_FILE, now)
        return teacher
    was = json.loads(path.read_text())
    if not (Path(was["folder"]) / "config.json").is_file() or judge_hash(was["folder"]) != was["sha256"]:
        raise CheckpointError(
            f"{run.path.name} distils the teacher {was['folder']}, which is gone or changed; put it back, or start a"
            " new run"
        )
    return Path(was["folder"])


def open_labels(config: DistillationConfig, teacher: Path, text: JudgeText, root: Path) -> LabelSet:
    """The label set that the configuration means. Raises ConfigError if the folder holds labels of another origin."""
    from zr_ray.judging.label import label_provenance

    provenance = label_provenance(teacher, text, config.rollout, config.label)
    key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:12]
    return LabelSet(config.label.path or root / "labels" / key, provenance, {"teacher_folder": str(teacher)})


def launch(
    job: str,
    config: DistillationConfig,
    args: argparse.Namespace,
    loop: Callable,
    engines: Engines,
    label_training: bool,
) -> None:
    """Distil and report; with --dry-run print the plan only. Raises ZrRayError for everything a user can fix.

    Args: job: name of run folder and row. loop: `train` of `loops/<job>.py`. engines: whose weights the run's rollout
        actors serve while the learners train. label_training: whether the teacher labels the training items first; it
        always labels the evaluation split."""
    started_at = time.time()
    root = Path(config.run.root) if config.run.root else default_root()
    teacher = find_teacher(config.teacher.path, root)
    judge = teacher if config.judge.path == "teacher" else judge_folder(config.judge.path)
    for folder in (teacher, judge):
        JudgeText(folder)  # refuses labels that are not one token

    from zr_ray.judging.label import labelling_bundles
    from zr_ray.run.placement import check_feasible, living_nodes, wanted_bundles

    learning = wanted_bundles(config.rollout, config.learner)
    if engines == "none":
        del learning["rollout"]
    phases = (labelling_bundles(config.rollout), learning)  # one after the other
    if args.dry_run:
        facts = {"teacher": str(teacher), "student starts from": str(judge)}
        if config.data.path is not None:
            counts = [len(load_split(config.data.path, split)) for split in ("train", config.evaluation.split)]
            facts["data"] = f"{counts[0]} training items, {counts[1]} {config.evaluation.split} items"
        driver.print_plan(config, {role: bundles for phase in phases for role, bundles in phase.items()}, facts)
        return
    RunFolder.check(config)
    dashboard = driver.connect(namespace="zr_ray")
    for bundles in phases:
        check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, job)
    driver.first_lines(run, dashboard, started_at)
    teacher = settle_teacher(run, teacher)
    data = data_folder(config.data, run.path)
    items, test = load_split(data, "train"), load_split(data, config.evaluation.split)
    say(f"data {data}: {len(items)} training items, {len(test)} {config.evaluation.split} items; teacher {teacher}")
    labels = open_labels(config, teacher, JudgeText(teacher), root)
    kept = _label(config, labels, teacher, items if label_training else [], test)
    items = kept if label_training else items
    _learn(
        config,
        run,
        loop,
        engines,
        DistillationTask(config, run.path, judge, tuple(items), tuple(test), labels, (), teacher, started_at),
    )
    _report(run, data, started_at)


def _label(
    config, labels: LabelSet, teacher: Path, items: Sequence[AnnotatedImage], test: Sequence[AnnotatedImage]
) -> list[AnnotatedImage]:
    """Make the labels that `items` and `test` lack; returns the items with a label. Raises DataError if there were
    items and none has."""
    from zr_ray.judging.label import label_items

    known = label_items([*items, *test], labels, teacher, config.rollout, config.label, say)
    broken = {name for name, label in known.items() if label.error}
    kept = [item for name, item in zip(fingerprints(items), items, strict=True) if name not in broken]
    if len(kept) < len(items):
        say(
            f"{len(items) - len(kept)} items are left out, their images cannot be read (column `error` in"
            f" {labels.folder})"
        )
    if items and not kept:
        raise DataError(
            f"the teacher must read some of the {len(items)} training images, it could read none; see `error` in"
            f" {labels.folder}"
        )
    return kept


def _learn(config, run: RunFolder, loop: Callable, engines: Engines, task: DistillationTask) -> None:
    from zr_ray.run.placement import RolloutFleet, run_learners

    with ExitStack() as stack:
        stack.enter_context(driver.follow(run))
        if engines != "none":
            served = task.teacher if engines == "teacher" else task.judge
            fleet = stack.enter_context(RolloutFleet(run.run_id, served, config.rollout, config.run.wait_for_nodes_s))
            task = replace(task, workers=tuple(fleet.workers))
        run_learners(loop, task, config.learner, run.path, run.run_id)


def _report(run: RunFolder, data: Path, started_at: float) -> None:
    from zr_ray.report.page import format_table, write_report
    from zr_ray.report.student_card import write_student_card

    result = run.read_result()
    card = f", its card {write_student_card(run, data)}" if result["job"] == "risd" else ""
    report = write_report(run)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
    say(f"next: the student is {run.judge}{card}; use it anywhere with judge.path={run.judge}")
