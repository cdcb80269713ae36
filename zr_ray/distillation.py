"""From a checked configuration to a trained student: teacher, labels, learners, report.

Order: everything that can be refused is refused, then Ray is joined, then the run folder and the data, then the teacher labels what is
not labelled yet, then its engines are gone and the learners start (online, they stay and answer batch by batch).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from zr_ray import driver
from zr_ray.config_risd import RisdConfig
from zr_ray.data.labels import LabelSet, fingerprints
from zr_ray.data.load import data_folder, load_split
from zr_ray.errors import CheckpointError, DataError
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge import JudgeText, judge_folder
from zr_ray.observe import duration, say
from zr_ray.records import AnnotatedImage
from zr_ray.run_folder import RESULT_FILE, RunFolder, default_root

TEACHER_FILE = "teacher.json"
"""Folder and hash of the teacher of a run, in its run folder."""


def find_teacher(path: str, root: Path) -> Path:
    """The teacher's judge folder; see `teacher.path`. Raises CheckpointError if there is no finished GDSO run, JudgeError if no judge."""
    if path == "latest":
        finished = sorted(root.glob(f"*/{RESULT_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in finished:
            judge = file.parent / "judge"
            if not file.parent.is_symlink() and json.loads(file.read_text())["job"] == "gdso" and (judge / "config.json").is_file():
                return judge_folder(str(judge))
        raise CheckpointError(f"teacher.path=latest needs a finished GDSO run under {root}, got none; run jobs/gdso.py, or name a judge")
    run = root / path / "judge"
    return judge_folder(str(run) if path != "builtin" and not Path(path).is_absolute() and run.is_dir() else path)


def _settle_teacher(run: RunFolder, teacher: Path) -> Path:
    """The teacher of this run: `latest` may mean another one when the run is resumed. Raises CheckpointError if the first is gone."""
    path, now = run.path / TEACHER_FILE, {"folder": str(teacher), "sha256": judge_hash(teacher)}
    if not path.is_file():
        run.write_json(TEACHER_FILE, now)
        return teacher
    was = json.loads(path.read_text())
    if not (Path(was["folder"]) / "config.json").is_file() or judge_hash(was["folder"]) != was["sha256"]:
        raise CheckpointError(f"{run.path.name} distils the teacher {was['folder']}, which is gone or changed; put it back, or start a new run")
    return Path(was["folder"])


def open_labels(config: RisdConfig, teacher: Path, text: JudgeText, root: Path) -> LabelSet:
    """The label set that the configuration means. Raises ConfigError if the folder holds labels of another origin."""
    from zr_ray.loops.label import label_provenance

    provenance = label_provenance(teacher, text, config.rollout, config.label)
    key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:12]
    return LabelSet(config.label.path or root / "labels" / key, provenance, {"teacher_folder": str(teacher)})


def launch(config: RisdConfig, args: argparse.Namespace) -> None:
    """Distil and report; with --dry-run print the plan only. Raises ZrRayError for everything a user can fix."""
    started_at = time.time()
    root = Path(config.run.root) if config.run.root else default_root()
    teacher = find_teacher(config.teacher.path, root)
    judge = teacher if config.judge.path == "teacher" else judge_folder(config.judge.path)
    for folder in (teacher, judge):
        JudgeText(folder)  # refuses labels that are not one token

    from zr_ray.loops.label import labelling_bundles
    from zr_ray.placement import check_feasible, living_nodes, wanted_bundles

    learning = wanted_bundles(config.rollout, config.learner)
    if config.risd.mode == "offline":
        del learning["rollout"]
    phases = (labelling_bundles(config.rollout), learning)  # one after the other
    if args.dry_run:
        facts = {"teacher": str(teacher), "student starts from": str(judge)}
        if config.data.path is not None:
            counts = [len(load_split(config.data.path, split)) for split in ("train", config.evaluation.split)]
            facts["data"] = f"{counts[0]} training items, {counts[1]} {config.evaluation.split} items"
        driver.print_plan(config, {role: bundles for phase in phases for role, bundles in phase.items()}, facts)
        return
    dashboard = driver.connect(namespace="zr_ray")
    for bundles in phases:
        check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, "risd")
    driver.first_lines(run, dashboard, started_at)
    teacher = _settle_teacher(run, teacher)
    data = data_folder(config.data, run.path)
    items, test = load_split(data, "train"), load_split(data, config.evaluation.split)
    say(f"data {data}: {len(items)} training items, {len(test)} {config.evaluation.split} items; teacher {teacher}")
    labels = open_labels(config, teacher, JudgeText(teacher), root)
    _distil(config, run, teacher, judge, items, test, labels, started_at)

    from zr_ray.report import format_table, write_report

    result = run.read_result()
    report = write_report(run)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
    say(f"next: the student is {run.judge}; one forward gives four distributions: zr_ray.models.student.Student({str(run.judge)!r})")


def _distil(
    config: RisdConfig, run: RunFolder, teacher: Path, judge: Path, items: Sequence[AnnotatedImage], test: Sequence[AnnotatedImage],
    labels: LabelSet, started_at: float,
) -> None:  # fmt: skip
    from zr_ray.loops.label import label_items
    from zr_ray.loops.risd import RisdTask, train
    from zr_ray.placement import RolloutFleet, run_learners

    online = config.risd.mode == "online"
    known = label_items([*([] if online else items), *test], labels, teacher, config.rollout, config.label, say)
    if not online:
        broken = {name for name, label in known.items() if label.error}
        kept = [item for name, item in zip(fingerprints(items), items, strict=True) if name not in broken]
        if len(kept) < len(items):
            say(f"{len(items) - len(kept)} items are left out, their images cannot be read (column `error` in {labels.folder})")
        items = kept
    if not items:
        raise DataError(f"no item of {run.path.name} can be distilled: the teacher could read none of the images")
    with ExitStack() as stack:
        stack.enter_context(driver.follow(run))
        workers = ()
        if online:
            workers = tuple(stack.enter_context(RolloutFleet(run.run_id, teacher, config.rollout, config.run.wait_for_nodes_s)).workers)
        task = RisdTask(config, run.path, judge, tuple(items), tuple(test), labels, workers, teacher, started_at)
        run_learners(train, task, config.learner, run.path, run.run_id)
