"""One job after the other, each with what the last one made: teacher (GDSO), student (RISD), is it fit, generator.

    <run>/gdso/judge --teacher--> <run>/risd/judge --judge--> evaluate_reward, t2i (which serves it) --> t2i/generator

Every stage is the ordinary job in a process of its own, with its run folder inside the chain's; its lines are copied to
the chain's log. A finished stage is never repeated, an interrupted one is resumed.
Left out on purpose: stages side by side; each needs the machine that the last one had.
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

from zr_ray.config.chain import ChainConfig
from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config
from zr_ray.config.risd import RisdConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import CheckpointError
from zr_ray.models.generators.load import generator_folder
from zr_ray.run.folder import CONFIG_FILE, RESULT_FILE, RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.run.resume import resumable

CONFIG_CLASSES = {"gdso": GdsoConfig, "risd": RisdConfig, "t2i": T2iConfig}
BLIND = 2
"""Exit code of evaluate_reward for a judge that is blind in a dimension; the chain says so and goes on to t2i, which
refuses unless told otherwise."""


@dataclass(frozen=True)
class Stage:
    """One job of the chain."""

    name: str
    folder: Path
    words: tuple[str, ...]
    """Overrides, or the switches of evaluate_reward."""
    config: Path | None = None
    """Named run."""

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / ("done.json" if self.name == "evaluate_reward" else RESULT_FILE)).is_file()

    def command(self, jobs: Path) -> list[str]:
        """The job's command line; resumes what was interrupted."""
        begun = self.name != "evaluate_reward" and (self.folder / CONFIG_FILE).is_file()
        named = ("--config", str(self.config)) if self.config else ()
        resume = ("--resume", str(self.folder)) if begun else ()
        return [sys.executable, str(jobs / f"{self.name}.py"), *named, *resume, *self.words]


def run_chain(config: ChainConfig, args: argparse.Namespace, jobs: Path) -> None:
    """Run the stages that have no result yet, and write the page that links them; with --dry-run print the command
    lines only.

    Args: jobs: folder of the job files. Raises: CheckpointError naming the stage that failed; ConfigError, JudgeError
    before anything starts."""
    launch(
        "chain",
        config,
        args.dry_run,
        lambda resumed: _check(config, jobs, resumed),
        lambda found, started: _run(config, jobs, started),
    )


def stages_of(config: ChainConfig, root: Path, configs: Path) -> list[Stage]:
    """Every stage, in order, after its configuration was loaded. root: the chain's run folder. configs: of named runs.
    Raises ConfigError."""
    chain = config.chain
    teacher = root / "gdso" / "judge" if "gdso" in chain.stages else chain.teacher
    judge = str(root / "risd" / "judge") if "risd" in chain.stages else chain.judge
    links = {"gdso": (), "risd": (f"teacher.path={teacher}",), "t2i": (f"reward.judge={judge}",)}
    found = []
    for name in chain.stages:
        folder = root / name
        if name == "evaluate_reward":
            generator = load_config(T2iConfig, _named(configs, config.t2i.config), list(config.t2i.overrides)).generator
            given = ("--generator", str(generator_folder(generator.path)), "--output", str(folder))
            found.append(Stage(name, folder, ("--judge", str(judge), *given, *config.evaluate_reward.arguments)))
            continue
        choice = getattr(config, name)
        named = _named(configs, choice.config)
        overrides = [f"run.root={root}", f"run.name={name}", f"run.seed={config.run.seed}", *links[name]]
        overrides += choice.overrides
        own = load_config(CONFIG_CLASSES[name], named, overrides)
        if name == "risd" and own.data.path is None and "gdso" in chain.stages:
            overrides.append(f"data.path={_gdso_data(config, configs) or root / 'gdso' / 'data'}")
        found.append(Stage(name, folder, tuple(overrides), named))
    return found


def _named(configs: Path, name: Path | None) -> Path | None:
    return configs / name if name else None


def _gdso_data(config: ChainConfig, configs: Path) -> Path | None:
    """The annotated data that the teacher is trained on; None: the simulated world, in its run folder."""
    return load_config(GdsoConfig, _named(configs, config.gdso.config), list(config.gdso.overrides)).data.path


def _check(config: ChainConfig, jobs: Path, resumed: RunFolder | None) -> Plan[None]:
    """Stages ask Ray for what they need themselves, each in its turn: there are no bundles."""
    folder = resumed.path if resumed else Path("CHAIN").absolute()
    stages = stages_of(config, folder, jobs / "configs")
    for stage in stages:
        written = stage.folder / CONFIG_FILE
        if written.is_file():  # a stage that has begun goes on as it began, or is done and stays as it is
            resumable(written, load_config(CONFIG_CLASSES[stage.name], stage.config, list(stage.words)))
    return Plan(None, {stage.name: " ".join(stage.command(jobs)[1:]) for stage in stages})


def _run(config: ChainConfig, jobs: Path, started: Started) -> None:
    from zr_ray.report.chain_page import chain_page

    run = started.run
    stages = stages_of(config, run.path, jobs / "configs")
    for number, stage in enumerate(stages, 1):
        if stage.finished:
            say(f"stage {number} of {len(stages)}, {stage.name}: finished before")
            continue
        say(f"stage {number} of {len(stages)}, {stage.name}: log {run.path / 'logs' / f'{stage.name}.log'}")
        begun = time.time()
        code, last = _run_stage(stage, jobs, run.path / "logs")
        if stage.name == "evaluate_reward" and code in (0, BLIND):
            run_stage = RunFolder(stage.folder)
            run_stage.write_json("done.json", {"blind": code == BLIND})
        if not stage.finished:
            raise CheckpointError(
                f"stage {stage.name} ended with code {code} ({last}); correct it, then go on with --resume {run.path}"
            )
        times = _times(run) | {stage.name: time.time() - begun}
        run.write_json("stages.json", times)
        say(f"stage {stage.name} done in {duration(times[stage.name])}")
        run.write_text("report.html", chain_page(run.run_id, stages, _times(run)))
    wall = time.time() - started.started_at
    result = {"job": "chain", "run_id": run.run_id, "status": "SUCCEEDED", "stages": _times(run), "wall_s": wall}
    run.write_json(RESULT_FILE, result)
    page = run.write_text("report.html", chain_page(run.run_id, stages, _times(run)))
    say(f"status SUCCEEDED in {duration(wall)}; report {page}")


def _times(run: RunFolder) -> dict[str, float]:
    """Stage -> seconds of the attempt that finished it."""
    path = run.path / "stages.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _run_stage(stage: Stage, jobs: Path, logs: Path) -> tuple[int, str]:
    """(exit code, last line). Its lines go to its log and, after its name, to ours. A signal that ends us ends it
    first."""
    import ray

    logs.mkdir(exist_ok=True)
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(jobs.parent)}
    last = ""
    with open(logs / f"{stage.name}.log", "a") as log:  # a resumed stage goes on in its log
        process = subprocess.Popen(
            stage.command(jobs),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=jobs.parent,
        )
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                last = line.strip() or last
                say(f"{stage.name} | {line.rstrip()}")
            return process.wait(), last
        except BaseException:
            process.terminate()  # it writes a checkpoint and ends
            process.wait()
            raise
