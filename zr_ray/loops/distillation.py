"""From a checked configuration to a trained student: teacher, labels, learners, report. What jobs/risd.py and
jobs/opd.py bring to the launch frame (`run/launch.py`).

With `images.of` a generator's newest images are made first, and join the data. The teacher labels what is not labeled
yet, then its engines are gone and the learners start, with engines of their own if the loop asks some.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zr_ray.config.risd import DistillationConfig
from zr_ray.config.sections import TrackedRunSection
from zr_ray.data.annotations import FILES
from zr_ray.data.labels import LabelSet, fingerprints
from zr_ray.data.load import require_judge
from zr_ray.data.mix import mix_annotations
from zr_ray.data.run_data import RunData
from zr_ray.errors import CheckpointError, DataError, JudgeError
from zr_ray.loops.run_images import GeneratorRun, find_generator_run, pool_parts, run_images
from zr_ray.loops.training import keep_facts, limits_fact, read_data, say_result
from zr_ray.models.engine_limits import settled
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES, JudgeText, judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import FORMAT_FILE, Rubric
from zr_ray.run import driver
from zr_ray.run.folder import RESULT_FILE, RunFolder, default_root
from zr_ray.run.launch import Bundles, Plan, Started, launch
from zr_ray.run.observe import say
from zr_ray.run.travel import portable
from zr_ray.workers.lora import check_lora
from zr_ray.world.build import data_folder

TEACHER_FILE = "teacher.json"
"""Folder and hash of the teacher of a run, in its run folder."""
STUDENT_FILE = "student.json"
"""The same of the judge that its student starts from."""
Engines = Literal["none", "teacher", "student"]


@dataclass(frozen=True)
class DistillationTask:
    """What the driver hands to every learner rank."""

    config: Any
    """The job's own subclass of DistillationConfig, with a section for its loop."""
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
        found = _newest_judge(root, "gdso")
        if found is not None:
            return found
        raise CheckpointError(
            f"teacher.path=latest needs a finished GDSO run under {root}, got none; run jobs/gdso.py, or name a judge"
        )
    run = root / path / "judge"
    return judge_folder(
        str(run) if path not in BUILTIN_JUDGES and not Path(path).is_absolute() and run.is_dir() else path
    )


def find_student(path: str, root: Path) -> Path:
    """A student's judge folder; `latest` is the newest finished RISD run's, or the built-in one where there is none.
    Raises JudgeError if it is no judge."""
    if path != "latest":
        return judge_folder(path)
    return _newest_judge(root, "risd") or judge_folder("student")


def _newest_judge(root: Path, job: str) -> Path | None:
    """The trained judge of the newest finished run of a job."""
    for file in sorted(root.glob(f"*/{RESULT_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True):
        judge = file.parent / "judge"
        if (
            not file.parent.is_symlink()
            and json.loads(file.read_text())["job"] == job
            and (judge / "config.json").is_file()
        ):
            return judge_folder(str(judge))
    return None


def settle_teacher(resumed: RunFolder | None, teacher: Path) -> Path:
    """The teacher of this run: when it is resumed, `latest` may mean another one by now. Raises CheckpointError if the
    first is gone or changed."""
    return _settled(resumed, teacher, TEACHER_FILE, "distils the teacher")


def settle_student(resumed: RunFolder | None, student: Path) -> Path:
    """Where the student of this run starts, as `settle_teacher`."""
    return _settled(resumed, student, STUDENT_FILE, "starts from the student")


def _settled(resumed: RunFolder | None, judge: Path, name: str, what: str) -> Path:
    if resumed is None or not (resumed.path / name).is_file():
        return judge
    was = json.loads((resumed.path / name).read_text())
    if not (Path(was["folder"]) / "config.json").is_file() or judge_hash(was["folder"]) != was["sha256"]:
        raise CheckpointError(
            f"{resumed.path.name} {what} {was['folder']}, which is gone or changed; put it back, or start a new run"
        )
    return Path(was["folder"])


def write_teacher(run: RunFolder, teacher: Path) -> None:
    """Keep folder and hash of the run's teacher, for `settle_teacher`."""
    run.write_json(TEACHER_FILE, {"folder": str(teacher), "sha256": judge_hash(teacher)})


def shared_rubric(teacher: Path, student: Path) -> Rubric:
    """The rubric of both judges: a student learns the teacher's distributions entry by entry. Raises JudgeError if they
    differ, or if labels of one of them are not one token."""
    one, other = (JudgeText(folder).rubric for folder in (teacher, student))
    if one != other:
        raise JudgeError(
            f"teacher and student must have the same dimensions, in order, and bins; {teacher} has"
            f" {', '.join(one.dimensions)} on {one.scale_text()}, {student} has {', '.join(other.dimensions)} on"
            f" {other.scale_text()}; copy {FORMAT_FILE} of the one to the other, or name another judge"
        )
    return one


def open_labels(config, teacher: Path, text: JudgeText, root: Path) -> LabelSet:
    """The label set that the configuration means. Raises ConfigError if the folder holds labels of another origin."""
    from zr_ray.judging.label import label_provenance

    provenance = label_provenance(teacher, text, config.rollout, config.label)
    key = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:12]
    folder = config.label.path or root / "labels" / key
    return LabelSet(folder, provenance, text.rubric, {"teacher_folder": str(teacher)})


@dataclass(frozen=True)
class Found:
    """What the check leaves for the body, `distil`."""

    root: Path
    """Folder of all runs."""
    teacher: Path
    text: JudgeText
    """The teacher's."""
    judge: Path
    """Where the student starts."""
    data: RunData | None
    """None where the simulated world is still to be written, or images are still to be made."""
    generator: GeneratorRun | None
    """Whose images join the data."""


def launch_distillation(
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
    launch(
        job,
        config,
        args.dry_run,
        lambda resumed: _check(config, engines, resumed),
        lambda found, started: distil(config, loop, engines, label_training, found, started),
    )


def _check(config: DistillationConfig, engines: Engines, resumed: RunFolder | None) -> Plan[Found]:
    from zr_ray.judging.label import labeling_bundles
    from zr_ray.run.placement import worker_bundles

    root = Path(config.run.root) if config.run.root else default_root()
    teacher = settle_teacher(resumed, find_teacher(config.teacher.path, root))
    judge = teacher if config.judge.path == "teacher" else find_student(config.judge.path, root)
    judge = settle_student(resumed, judge)
    rubric, text = shared_rubric(teacher, judge), JudgeText(teacher)
    facts, data = {"teacher": str(teacher), "student starts from": str(judge)}, None
    generator = find_generator_run(config.images.of, root) if config.images.of is not None else None
    if generator is not None:
        facts["images"] = f"of {generator.path}, step {generator.step}, and all made of it before"
    if generator is None or config.data.path is not None:
        require_judge(config.data.path, rubric)
    if config.data.path is not None and generator is None:
        data = read_data(config, config.data.path, text)
        facts |= data.plan(config.evaluation.split)
    facts["rollout limits"] = limits_fact(config.rollout, teacher, data)
    check_lora(judge, config.learner)
    inputs = {"judge.path": judge_hash(judge)} | ({"data.path": data.digest} if data else {})
    made: tuple[Bundles, ...] = () if generator is None else ({"generator": worker_bundles(config.images)},)
    learning = {} if engines == "none" else {"rollout": worker_bundles(config.rollout)}
    learning["learner"] = worker_bundles(config.learner)
    phases = labeling_bundles(config.rollout), learning, *made
    return Plan(Found(root, teacher, text, judge, data, generator), facts, inputs, phases)


def distil(
    config: DistillationConfig, loop: Callable, engines: Engines, label_training: bool, found: Found, started: Started
) -> None:
    """Images, labels, learning, report: into the run folder of `started`, in the cluster that this process has joined.

    Args: as of `launch_distillation`. found: what was checked. started: its phases are what labels, and what learns."""
    from zr_ray.run.room import reserve

    run, teacher = started.run, found.teacher
    write_teacher(run, teacher)
    run.write_json(STUDENT_FILE, {"folder": str(found.judge), "sha256": judge_hash(found.judge)})
    if found.generator is None:
        data = found.data or read_data(config, data_folder(config.data, run.path), found.text)
    else:
        data = read_data(config, _images(config, run, found), found.text)
    keep_facts(run, data, config.evaluation.split)
    config = config.model_copy(update={"rollout": settled(config.rollout, teacher, data.need)})
    say(f"teacher {teacher}")
    items, test = data.train, data.held_out
    labels = open_labels(config, teacher, found.text, found.root)
    with reserve(run.run_id, started.phases[0], config.run.room_deadline_s):
        pass  # the labels' pipeline places itself: Ray Data waits for ever, and silently, for what is not free
    kept = _label(config, labels, teacher, items if label_training else (), test)
    items = tuple(kept if label_training else items)
    judge, since = portable(found.judge), started.started_at
    task = DistillationTask(config, run.path, judge, items, tuple(test), labels, (), portable(teacher), since)
    _learn(config, run, loop, engines, task, started.phases[1])
    _report(run, data.folder, started.started_at, config.run)


def _images(config: DistillationConfig, run: RunFolder, found: Found) -> Path:
    """data.path's images, if it is set, and all that were made of the generator's run so far, as one data set of this
    run; a resumed run takes what it took."""
    folder = run.path / "data"
    if not (folder / FILES["jsonl"]).is_file():
        run_images(found.generator, config.images, found.root, run.run_id, config.run.wait_for_nodes_s)
        parts = pool_parts(found.generator, found.root)
        if config.data.path is not None:
            parts = {"data": config.data.path} | parts
        for name, count in mix_annotations(folder, parts).items():
            say(f"{count} images of {name}")
    return folder


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
    scored = sum(bool(known[name].valid.any()) for name in fingerprints(kept))
    if items and not scored:
        raise JudgeError(
            f"the teacher's traces must reach a score for some of the {len(kept)} training items, none does: raise"
            f" rollout.max_new_tokens (now {config.rollout.max_new_tokens}), or look at what it writes with"
            f" jobs/evaluate.py judge.path={teacher}"
        )
    return kept


def _learn(config, run: RunFolder, loop: Callable, engines: Engines, task: DistillationTask, wanted: Bundles) -> None:
    from zr_ray.run.learners import run_learners
    from zr_ray.run.room import reserve
    from zr_ray.workers.rollout import rollout_fleet

    with ExitStack() as stack:
        stack.enter_context(driver.follow(run))
        room = stack.enter_context(reserve(run.run_id, wanted, config.run.room_deadline_s))
        if engines != "none":
            served = task.teacher if engines == "teacher" else task.judge
            rollout, transport = config.rollout, "object_store"
            if engines == "student":  # it is pushed
                rollout, transport = rollout.model_copy(update={"sleep": config.sleeps}), config.weights.transport
            fleet = stack.enter_context(
                rollout_fleet(run.run_id, served, rollout, group=room.take("rollout"), transport=transport)
            )
            task = replace(task, workers=tuple(fleet.workers))
        run_learners(loop, task, config.learner, run.path, run.run_id, room)


def _report(run: RunFolder, data: Path, started_at: float, settings: TrackedRunSection) -> None:
    from zr_ray.report.student_card import write_student_card

    card = f", its card {write_student_card(run, data)}" if run.read_result()["job"] == "risd" else ""
    say_result(run, started_at, settings)
    say(f"next: the student is {run.judge}{card}; use it anywhere with judge.path={run.judge}")
