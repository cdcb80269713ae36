"""From a checked configuration to a trained judge: the part that all training jobs share.

Order: everything that can be refused is refused, then Ray is joined, then the run folder and the data, then engines,
then learners.
Left out on purpose: algorithms. A job brings its loop and its task class.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from zr_ray.data.load import data_folder, load_split
from zr_ray.data.pairs import preference_pairs
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.records import AnnotatedImage, PreferencePair
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import duration, say


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


def launch(job: str, config, args: argparse.Namespace, loop) -> None:
    """Run `loop({"task": TrainingTask})` on every learner rank and report; with --dry-run print the plan only.

    Args: job: name for the run folder. config: has run, judge, data, rollout, learner, evaluation. loop: importable
    function.
    Raises: ZrRayError for everything a user can fix."""
    started_at = time.time()
    judge = judge_folder(config.judge.path)
    text = JudgeText(judge)  # refuses labels that are not one token

    from zr_ray.run.placement import RolloutFleet, check_feasible, living_nodes, run_learners, wanted_bundles

    bundles = wanted_bundles(config.rollout, config.learner)
    if args.dry_run:
        facts = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}
        if config.data.path is not None:
            pairs, test = (
                preference_pairs(load_split(config.data.path, "train")),
                load_split(config.data.path, config.evaluation.split),
            )
            facts["data"] = f"{len(pairs)} training pairs, {len(test)} {config.evaluation.split} items"
        driver.print_plan(config, bundles, facts)
        return

    if config.data.path is not None:
        load_split(
            config.data.path, config.evaluation.split
        )  # unreadable data is refused before Ray is asked for anything
    RunFolder.check(config)
    dashboard = driver.connect(namespace="zr_ray")
    check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, job)
    driver.first_lines(run, dashboard, started_at)
    data = data_folder(config.data, run.path)
    pairs, test = preference_pairs(load_split(data, "train")), load_split(data, config.evaluation.split)
    say(f"data {data}: {len(pairs)} training pairs, {len(test)} {config.evaluation.split} items")

    from zr_ray.report.page import format_table, write_report

    with driver.follow(run), RolloutFleet(run.run_id, judge, config.rollout, config.run.wait_for_nodes_s) as fleet:
        say(
            f"{len(fleet.workers)} rollout engine(s) ready after {duration(time.time() - started_at)}; starting"
            f" {config.learner.workers} learner(s)"
        )
        task = TrainingTask(config, run.path, judge, tuple(fleet.workers), tuple(pairs), tuple(test), started_at)
        run_learners(loop, task, config.learner, run.path, run.run_id)
    result = run.read_result()
    report = write_report(run)
    say(format_table(result))
    say(f"status {result['status']} in {duration(time.time() - started_at)}; report {report}")
    say(f"next: the trained judge is {run.judge}; use it anywhere with judge.path={run.judge}")
