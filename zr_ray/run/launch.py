"""The frame of every job: what is refused and in which order, what --dry-run and --resume mean.

    trackers and a run to resume are looked for -> the job's own check
    -> (--dry-run: the plan is printed, nothing else happens)
    -> Ray is joined -> what the job will ask for is compared with the cluster -> the run folder -> the job's body

Nothing is written and nothing is asked of Ray before everything that needs neither has been checked.
Left out on purpose: what a job is. It brings `check`, which says what it found and wants, and `body`, which does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from zr_ray.config.sections import TrackedRunSection
from zr_ray.errors import ConfigError
from zr_ray.run import console, driver
from zr_ray.run.folder import INPUTS_FILE, RunFolder, find_run
from zr_ray.run.observe import say
from zr_ray.run.trackers import check_trackers

Found = TypeVar("Found")
Bundles = Mapping[str, Sequence[dict[str, float]]]
"""Role -> what each of its workers asks Ray for."""


@dataclass(frozen=True)
class Plan(Generic[Found]):
    """What a job's check gives."""

    found: Found
    """What the body goes on with: folders, tokenizers, data that was read."""
    facts: dict[str, str] = field(default_factory=dict)
    """Name -> one line for --dry-run."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Name of what the result depends on beside the configuration -> hash of its contents. A resumed run must find the
    same."""
    phases: tuple[Bundles, ...] = ()
    """What is held at the same time, one phase after the other; each must fit into the cluster by itself."""


@dataclass(frozen=True)
class Started:
    """What the frame hands to a job's body."""

    run: RunFolder | None
    """None for a job that keeps no folder."""
    started_at: float
    """time.time() of the job's first line."""
    dashboard: str
    """URL, empty without one."""
    phases: tuple[Bundles, ...] = ()
    """The plan's, for `run.room.reserve`."""


def launch(
    job: str,
    config,
    dry_run: bool,
    check: Callable[[RunFolder | None], Plan[Found]],
    body: Callable[[Found, Started], None],
    keeps_folder: bool = True,
) -> None:
    """Check, and unless `dry_run` connect and run the body.

    Args: job: name for the run folder. config: has `run`. check: gets the folder of the run that is resumed, or None;
        reads, writes nothing, needs no Ray. keeps_folder: False for a service, which leaves no folder and has nothing
        to resume.
    Raises: ZrRayError for everything a user can fix."""
    started_at = time.time()
    if isinstance(config.run, TrackedRunSection):
        check_trackers(config.run)
    resumed = _resumed(config, keeps_folder)
    plan = check(resumed)
    if resumed is not None:
        resumed.check_inputs(plan.inputs)
    if dry_run:
        driver.print_plan(config, plan.phases, plan.facts)
        return
    dashboard = driver.connect(namespace="zr_ray")

    from zr_ray.run.placement import check_feasible, living_nodes

    for bundles in plan.phases:
        check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, job) if keeps_folder else None
    if run is not None:
        if resumed is None:
            run.write_json(INPUTS_FILE, plan.inputs)
        driver.first_lines(run, dashboard, started_at)
    elif console.library_file():
        say(f"messages of libraries {console.library_file()}")
    body(plan.found, Started(run, started_at, dashboard, plan.phases))


def _resumed(config, keeps_folder: bool) -> RunFolder | None:
    if config.run.resume is None:
        return None
    if not keeps_folder:
        raise ConfigError(
            "run.resume is for jobs that leave a run folder, a service has nothing to resume; start it anew"
        )
    RunFolder.check(config)
    return RunFolder(find_run(config.run.resume, config.run.root))
