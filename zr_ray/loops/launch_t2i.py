"""From a checked configuration to a trained generator: the reward service, the diffusion actors, the report.

Order: everything that can be refused is refused, then Ray is joined, then the run folder, then the reward service (the
run's own, or the one that is named), then the actors under Ray Train. The run's own service is deleted when the job
ends, however it ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zr_ray.config.serve import ServeConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.data.prompt_lists import read_prompts, split_prompts
from zr_ray.errors import ConfigError
from zr_ray.loops.refresh_plan import RefreshPlan, plan_refresh
from zr_ray.loops.reward_versions import RewardVersions
from zr_ray.models.generators.load import generator_folder, pipeline_class
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import JudgeText
from zr_ray.rubric import DIMENSIONS
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.run.travel import portable
from zr_ray.workers.user_function import named_function

if TYPE_CHECKING:
    from zr_ray.run.room import Room

ASSETS = Path(__file__).resolve().parents[1] / "assets"
REWARD_ROLE = "reward-"
"""Before the name of each deployment of the job's own service, among the roles that a job holds room for."""
WORLD_PROMPTS = 4096
"""Training prompts of the simulated world that are drawn; they repeat, as the world is small."""


@dataclass(frozen=True)
class T2iTask:
    """What the driver hands to every diffusion actor."""

    config: T2iConfig
    run_path: Path
    generator: Path
    """Where it starts: a diffusers folder."""
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    """Prompts; none of the held-out ones is trained on."""
    reward_target: str | None
    """Application name or URL; None where the reward is a function."""
    started_at: float
    """time.time() of the job's first line."""
    referee: Path | None = None
    """Judge that watches and never rewards."""


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    generator: Path
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    service: ServeConfig | None
    """The run's own, or None."""
    referee: Path | None
    refresh: RefreshPlan | None
    """None where the reward stays what it is."""


def launch_t2i(config: T2iConfig, args: argparse.Namespace, loop) -> None:
    """Train and report; with --dry-run print the plan only. Raises ZrRayError for everything a user can fix."""
    launch(
        "t2i",
        config,
        args.dry_run,
        lambda resumed: _check(config, resumed),
        lambda found, started: _train(config, loop, found, started),
    )


def _check(config: T2iConfig, resumed: RunFolder | None) -> Plan[_Found]:
    from zr_ray.run.placement import bundle

    folder = generator_folder(config.generator.path)
    training, held_out = task_prompts(config)
    check_algorithm(config, pipeline_class(folder))
    service, referee, reward, actor = own_service(config), referee_folder(config), config.reward, config.actor
    if reward.function is not None:
        named_function(reward.function)
    inputs = check_service(config, service) if service is not None else {}
    bundles, refresh = {"actor": [bundle(actor.cpus, actor.gpus, actor.resource)] * actor.workers}, None
    if service is not None:
        from zr_ray.serving.deployments import bundles_of, served_judge

        held = bundles_of(service, REWARD_ROLE)
        bundles |= held
        if reward.refresh.enabled:
            refresh = plan_refresh(config, resumed, referee, served_judge(reward.judge)[0], held)
    facts = {
        "generator": f"{folder}, {pipeline_class(folder)}",
        "prompts": f"{len(training)} to train on, {len(held_out)} held out",
        "reward": reward_text(config),
        "referee": str(referee or "none"),
    }
    phases: tuple = (bundles,)
    if refresh is not None:
        facts, inputs, phases = facts | refresh.facts, inputs | refresh.inputs, phases + refresh.phases
    return Plan(_Found(folder, training, held_out, service, referee, refresh), facts, inputs, phases)


def _train(config: T2iConfig, loop, found: _Found, started: Started) -> None:
    from zr_ray.report.publish import publish
    from zr_ray.report.t2i_page import format_rows, write_report
    from zr_ray.run.room import reserve

    run, since = started.run, started.started_at
    service = present_service(run, found)
    say(f"generator {found.generator}: {len(found.training)} training and {len(found.held_out)} held-out prompts")
    with (
        driver.follow(run),
        reserve(run.run_id, started.phases[0], config.run.room_deadline_s) as room,
        reward_target(config, service, run.run_id, room) as target,
    ):
        say(
            f"reward, {reward_text(config)}, ready after {duration(time.time() - since)}; starting"
            f" {config.actor.workers} diffusion actor(s)"
        )
        referee = portable(found.referee) if found.referee is not None else None
        folders = run.path, portable(found.generator)
        task = T2iTask(config, *folders, found.training, found.held_out, target, since, referee)
        _run_actors(config, loop, task, found, started, room)
    report, result = write_report(run), run.read_result()
    publish(run, config.run)
    say(format_rows(result))
    say(f"status {result['status']} in {duration(time.time() - since)}; report {report}")
    made = run.path / "generator"
    say(f"next: the trained generator is {made}; use it anywhere with generator.path={made}")


def present_service(run: RunFolder, found: _Found) -> ServeConfig | None:
    """The run's own service with the version of the reward that the run has; notes the first one."""
    from zr_ray.loops.distillation import write_teacher
    from zr_ray.serving.roll import with_judge

    if found.refresh is None or found.service is None:
        return found.service
    write_teacher(run, found.refresh.teacher)
    versions = RewardVersions(run.path)
    versions.begin(judge_hash(found.refresh.first))
    judge = versions.judge(found.refresh.first)
    if versions.number:
        say(f"the reward is version {versions.number}: {judge}")
    return with_judge(found.service, judge)


def _run_actors(config: T2iConfig, loop, task: T2iTask, found: _Found, started: Started, room: Room) -> None:
    """Until the last step, with the looks at the reward between."""
    from zr_ray.run.learners import run_learners

    def train(since: float | None, held: Room) -> None:
        told = task if since is None else replace(task, started_at=since)
        run_learners(loop, told, config.actor, task.run_path, started.run.run_id, held, "actor")

    if found.refresh is None:
        train(None, room)
        return
    from zr_ray.loops.refresh import Refresher, train_and_refresh

    plan, actors = found.refresh, started.phases[0]["actor"]
    refresher = Refresher(config, started.run, plan.teacher, plan.first, found.service, task.reward_target, actors)
    train_and_refresh(train, refresher, room)


def task_prompts(config: T2iConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held-out) prompts: of the list, or of the simulated world. Raises DataError."""
    c = config.prompts
    if c.path is not None:
        training, held_out = split_prompts(read_prompts(c.path, c.column), c.held_out)
        return tuple(training), tuple(held_out)
    from zr_ray.builtin.generator_scenes import evaluation_prompts, training_prompts

    return tuple(training_prompts(WORLD_PROMPTS, c.seed)), tuple(evaluation_prompts(c.held_out, c.seed))


def check_algorithm(config: T2iConfig, pipeline: str) -> None:
    """What depends on the generator's family and on the kind of reward. Raises ConfigError."""
    name, scale = config.t2i.algorithm, config.generator.guidance_scale
    if name != "nft" and scale > (0 if pipeline == "ZImagePipeline" else 1):
        raise ConfigError(
            f"{name} trains the velocity that samples, without guidance, got generator.guidance_scale {scale:g};"
            " set it to the family's value for none (Z-Image: 0, others: 1), or use nft"
        )
    foreign = [d for d in config.reward.weights if d not in DIMENSIONS]
    if foreign and config.reward.function is None and not config.reward.sources:
        raise ConfigError(f"reward.weights of a judge must name dimensions ({', '.join(DIMENSIONS)}), got {foreign}")


def check_service(config: T2iConfig, service: ServeConfig) -> dict[str, str]:
    """What the job's own service would hold -> its hash. Raises JudgeError or ConfigError for what could not start, or
    has no score of a name that is weighted."""
    from zr_ray.serving.deployments import check_sources, served_judge

    found = {f"reward.sources.{name}": value for name, value in check_sources(service).items()}
    for source in config.reward.sources:
        if source.judge is None:
            continue
        known = JudgeText(served_judge(source.judge)[0]).rubric.dimensions
        if foreign := [name for name in source.weights if name not in known]:
            raise ConfigError(f"reward source {source.name} scores {', '.join(known)}, its weights name {foreign}")
    if service.judge.path is not None:
        judge, _ = served_judge(service.judge.path)
        JudgeText(judge)  # refuses labels that are not one token
        found["reward.judge"] = judge_hash(judge)
    return found


def reward_text(config: T2iConfig) -> str:
    """Who scores, in words."""
    reward = config.reward
    where = reward.target or "a service of its own"
    if reward.sources:
        return f"{where} with " + ", ".join(
            f"{s.name} ({s.judge or s.clip or s.function or 'as it is there'})" for s in reward.sources
        )
    return reward.function or reward.target or f"{where} with {reward.judge}"


def referee_folder(config: T2iConfig) -> Path | None:
    """The judge that watches. Raises JudgeError if a named one is none."""
    from zr_ray.models.judge_text import judge_folder

    name = config.held_out.referee
    shipped = ASSETS / (name or "referee")
    if (shipped / "config.json").is_file():
        return shipped
    return None if name is None else judge_folder(name)


def own_service(config: T2iConfig) -> ServeConfig | None:
    """The service that the job starts: handles only, so nothing listens. None if another one, or a function, is
    named."""
    c = config.reward
    if c.target is not None or c.function is not None:
        return None
    room = c.model_dump(include={"replicas", "cpus", "gpus", "resource", "threads", "dtype", "start_deadline_s"})
    sources = [
        source.model_dump(exclude={"weights"}) | {"scores": tuple(source.weights) if source.function else ()}
        for source in c.sources
    ]
    judge = None if sources else c.judge
    return ServeConfig.model_validate(
        {"judge": {"path": judge}, "http": {"enabled": False}, "replica": room, "sources": sources}
    )


@contextmanager
def reward_target(config: T2iConfig, service: ServeConfig | None, run_id: str, room: Room) -> Iterator[str | None]:
    """What actors ask, while the block runs."""
    if service is None:
        yield config.reward.target
        return
    from zr_ray.serving.launch import running_service

    roles = tuple(role for role in room.roles if role.startswith(REWARD_ROLE))
    with running_service(service, name := f"reward-{run_id}", room, roles):
        yield name
