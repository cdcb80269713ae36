"""From a checked configuration to a trained judge: what jobs that train on annotated pairs bring to the launch frame
(`run/launch.py`).

Left out on purpose: algorithms. A job brings its loop.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.sections import TrackedRunSection
from zr_ray.config.workers import RolloutSection
from zr_ray.data.collector import leave_alone
from zr_ray.data.load import require_judge
from zr_ray.data.run_data import DATA_FILE, RunData, load_run_data, require_pairs
from zr_ray.errors import JudgeError
from zr_ray.models.engine_limits import limits_text, settled
from zr_ray.models.identity import judge_hash
from zr_ray.models.item_check import JudgeItemCheck
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.models.memory import check_memory, judge_shape, learner_memory, memory_text, rollout_memory
from zr_ray.records import AnnotatedImage, PreferencePair
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.run.travel import portable
from zr_ray.workers.lora import check_lora
from zr_ray.world.build import data_folder


@dataclass(frozen=True)
class TrainingTask:
    """What the driver hands to every learner rank."""

    config: object
    """The job's configuration."""
    run_path: Path
    judge: Path
    workers: tuple
    """All rollout actors of the run."""
    pairs: tuple[PreferencePair, ...]
    """Training pairs."""
    test: tuple[AnnotatedImage, ...]
    """The evaluation split."""
    started_at: float
    """time.time() of the job's first line; ETA and wall_s count from it."""


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    judge: Path
    text: JudgeText
    data: RunData | None
    """None where the simulated world is still to be written."""


def launch_training(job: str, config, args: argparse.Namespace, loop) -> None:
    """Run `loop({"task": TrainingTask})` on every learner rank and report; with --dry-run print the plan only.

    Args: job: name for the run folder. config: has run, judge, data, rollout, learner, evaluation. loop: importable
    function.
    Raises: ZrRayError for everything a user can fix."""
    launch(
        job, config, args.dry_run, lambda _: _check(config), lambda found, started: _train(config, loop, found, started)
    )


def _check(config) -> Plan[_Found]:
    from zr_ray.run.placement import worker_bundles

    judge = judge_folder(config.judge.path)
    text = JudgeText(judge)  # refuses labels that are not one token
    require_judge(config.data.path, text.rubric)
    facts, data = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}, None
    if config.data.path is not None:
        data = read_data(config, config.data.path, text)
        require_pairs(data)
        facts |= data.plan(config.evaluation.split)
    facts["rollout limits"] = limits_fact(config.rollout, judge, data)
    check_lora(judge, config.learner)
    facts |= memory_facts(config, judge)
    inputs = {"judge.path": judge_hash(judge)} | ({"data.path": data.digest} if data else {})
    bundles = {"rollout": worker_bundles(config.rollout), "learner": worker_bundles(config.learner)}
    return Plan(_Found(judge, text, data), facts, inputs, (bundles,))


def read_data(config, folder: Path, text: JudgeText) -> RunData:
    """Both splits of a run's data, each item known to fit a question to the judge of `text`.   Raises: DataError.

    Args: config: has rollout and evaluation."""
    check = JudgeItemCheck.of_engine(text, config.rollout)
    return load_run_data(folder, config.evaluation.split, check, text.rubric.dimensions)


def limits_fact(rollout: RolloutSection, judge: Path, data: RunData | None) -> str:
    """What the engines will be started with, in one line.   Raises: ConfigError for what they would refuse."""
    need = data.need if data is not None else None
    told = limits_text(settled(rollout, judge, need), need)
    return told if data is not None else f"{told}; lengths follow the data, which is still to be written"


def memory_facts(config, judge: Path) -> dict[str, str]:
    """GPU memory of a learner rank and of an engine, by the formula of `models/memory.py`; empty for a run on CPUs.

    Raises: PlacementError if run.gpu_gib is known and the exact parts exceed it."""
    wanted = {"rollout": config.rollout, "learner": config.learner}
    if not any(section.gpus > 0 for section in wanted.values()):
        return {}
    shape, refers = judge_shape(judge), getattr(getattr(config, "gdso", None), "beta_kl", 0) > 0
    facts = {}
    for role, section in wanted.items():
        if section.gpus == 0:
            continue
        held = (config.run.gpu_gib or 0.0) * min(1.0, section.gpus)
        estimate = learner_memory(shape, section, refers) if role == "learner" else rollout_memory(shape, section, held)
        check_memory(role, estimate, held)
        facts[f"memory of a {role} GPU"] = memory_text(estimate, held)
    return facts


def keep_facts(run: RunFolder, data: RunData, split: str) -> None:
    """Say what a run's data is and what people should know about it; the run folder gets data.json."""
    run.write_json(DATA_FILE, data.facts())
    say(f"data {data.folder}: {data.line(split)}")
    for warning in data.warnings:
        say(f"warning: {warning}")


def _train(config, loop, found: _Found, started: Started) -> None:
    from zr_ray.run.learners import run_learners
    from zr_ray.run.room import reserve
    from zr_ray.workers.rollout import rollout_fleet

    run, since = started.run, started.started_at
    data = found.data or read_data(config, data_folder(config.data, run.path), found.text)
    require_pairs(data)
    keep_facts(run, data, config.evaluation.split)
    leave_alone()
    rollout = settled(config.rollout, found.judge, data.need).model_copy(update={"sleep": config.sleeps})
    with (
        driver.follow(run),
        reserve(run.run_id, started.phases[0], config.run.room_deadline_s) as room,
        rollout_fleet(
            run.run_id, found.judge, rollout, group=room.take("rollout"), transport=config.weights.transport
        ) as fleet,
    ):
        say(
            f"{len(fleet.workers)} rollout engine(s) ready after {duration(time.time() - since)}; starting"
            f" {config.learner.workers} learner(s)"
        )
        task = TrainingTask(
            config, run.path, portable(found.judge), tuple(fleet.workers), data.pairs, data.held_out, since
        )
        run_learners(loop, task, config.learner, run.path, run.run_id, room)
    say_result(run, since, config.run)
    say(f"next: the trained judge is {run.judge}; use it anywhere with judge.path={run.judge}")


def say_result(run: RunFolder, started_at: float, settings: TrackedRunSection | None = None) -> None:
    """Write the report of a finished run, hand it to its trackers if it has some, say its table, its status and where
    the report is.

    Raises: JudgeError, after that, if the run failed in the end."""
    from zr_ray.report.page import format_table, write_report
    from zr_ray.report.publish import publish

    result = run.read_result()
    report = write_report(run)
    if settings is not None:
        publish(run, settings)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
    if result["status"] != "SUCCEEDED":
        raise JudgeError(f"{result['job']} {result['run_id']}: {result.get('problem', result['status'])}; see {report}")
