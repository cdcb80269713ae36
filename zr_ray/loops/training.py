"""From a checked configuration to a trained judge: what jobs that train on annotated pairs bring to the launch frame
(`run/launch.py`).

Left out on purpose: algorithms. A job brings its loop.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from zr_ray.data.load import load_split
from zr_ray.data.pairs import preference_pairs
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.records import AnnotatedImage, PreferencePair
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
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
    data: tuple[list[PreferencePair], list[AnnotatedImage]] | None
    """(training pairs, evaluation items); None where the simulated world is still to be written."""


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
    facts = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}
    data = None
    if config.data.path is not None:
        data = _read(config, config.data.path)
        facts["data"] = f"{len(data[0])} training pairs, {len(data[1])} {config.evaluation.split} items"
    bundles = {"rollout": worker_bundles(config.rollout), "learner": worker_bundles(config.learner)}
    return Plan(_Found(judge, data), facts, (bundles,))


def _read(config, folder: Path) -> tuple[list[PreferencePair], list[AnnotatedImage]]:
    return preference_pairs(load_split(folder, "train")), load_split(folder, config.evaluation.split)


def _train(config, loop, found: _Found, started: Started) -> None:
    from zr_ray.run.placement import run_learners
    from zr_ray.workers.rollout import rollout_fleet

    run, since = started.run, started.started_at
    folder = data_folder(config.data, run.path)
    pairs, test = found.data or _read(config, folder)
    say(f"data {folder}: {len(pairs)} training pairs, {len(test)} {config.evaluation.split} items")
    with (
        driver.follow(run),
        rollout_fleet(run.run_id, found.judge, config.rollout, config.run.wait_for_nodes_s) as fleet,
    ):
        say(
            f"{len(fleet.workers)} rollout engine(s) ready after {duration(time.time() - since)}; starting"
            f" {config.learner.workers} learner(s)"
        )
        task = TrainingTask(config, run.path, found.judge, tuple(fleet.workers), tuple(pairs), tuple(test), since)
        run_learners(loop, task, config.learner, run.path, run.run_id)
    say_result(run, since)
    say(f"next: the trained judge is {run.judge}; use it anywhere with judge.path={run.judge}")


def say_result(run: RunFolder, started_at: float) -> None:
    """Write the report of a finished run, say its table, its status and where the report is."""
    from zr_ray.report.page import format_table, write_report

    result = run.read_result()
    report = write_report(run)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
