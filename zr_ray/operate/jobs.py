"""The jobs of an installed package, without a checkout: `python -m zr_ray gdso --config gdso_tiny gdso.steps=10`.

They are those of jobs/, which a checkout submits. A named run is found by its name too: the wheel brings jobs/configs.
Left out on purpose: jobs that make the built-in assets, data conversion and benchmarks; those need a checkout.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zr_ray.errors import ConfigError
from zr_ray.run import driver
from zr_ray.run.environment import checkout
from zr_ray.run.travel import PACKAGE

CONFIGS = Path("share") / "zr_ray" / "configs"
"""Where an installed wheel has the named runs, below the environment's prefix."""


@dataclass(frozen=True)
class Job:
    """One job: its configuration, and what a checked one is handed to."""

    config: str
    """module:class of its configuration."""
    launch: Callable[[Any, argparse.Namespace], None]
    about: str

    @property
    def config_class(self) -> type:
        """The configuration's class."""
        module, name = self.config.split(":")
        return getattr(importlib.import_module(module), name)


def _gdso(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.gdso import train
    from zr_ray.loops.training import launch_training

    launch_training("gdso", config, args, train)


def _sft(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.sft import train
    from zr_ray.loops.training import launch_training

    launch_training("rewarddance" if config.sft.reasoning else "sft", config, args, train)


def _risd(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.distillation import launch_distillation
    from zr_ray.loops.risd import train

    online = config.risd.mode == "online"
    launch_distillation("risd", config, args, train, engines="teacher" if online else "none", label_training=not online)


def _opd(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.distillation import launch_distillation
    from zr_ray.loops.opd import train

    launch_distillation("opd", config, args, train, engines="student", label_training=False)


def _t2i(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.launch_t2i import launch_t2i
    from zr_ray.loops.t2i import train

    launch_t2i(config, args, train)


def _evaluate(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.evaluation import launch_evaluation

    launch_evaluation(config, args)


def _audit(config, args: argparse.Namespace) -> None:
    from zr_ray.loops.audit import audit

    audit(config, args)


def _serve(config, args: argparse.Namespace) -> None:
    from zr_ray.serving.launch import launch_service

    launch_service(config, args)


JOBS = {
    "gdso": Job("zr_ray.config.gdso:GdsoConfig", _gdso, "train a reasoning judge"),
    "sft": Job("zr_ray.config.sft:SftConfig", _sft, "supervised baselines"),
    "risd": Job("zr_ray.config.risd:RisdConfig", _risd, "distil a judge into one token"),
    "opd": Job("zr_ray.config.opd:OpdConfig", _opd, "on-policy distillation"),
    "t2i": Job("zr_ray.config.t2i:T2iConfig", _t2i, "post-train a text-to-image generator"),
    "evaluate": Job("zr_ray.config.evaluate:EvaluateConfig", _evaluate, "judge a data set and measure agreement"),
    "audit": Job("zr_ray.config.audit:AuditConfig", _audit, "is a student as good as its teacher"),
    "serve": Job("zr_ray.config.serve:ServeConfig", _serve, "the reward service"),
}


def named_run(given: Path) -> Path:
    """A YAML file as it is, or the named run of that name from the checkout or the installed wheel. Raises
    ConfigError."""
    if given.is_file():
        return given
    home = checkout()
    # beside the package: pip install --target
    folders = [*([home / "jobs" / "configs"] if home else []), Path(sys.prefix) / CONFIGS, PACKAGE.parent / CONFIGS]
    for folder in folders:
        if (found := folder / f"{given.name.removesuffix('.yaml')}.yaml").is_file():
            return found
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigError(f"--config must be a YAML file or a named run ({', '.join(names)}), got {given}")


def run(name: str, argv: list[str]) -> int:
    """Exit code of a job."""
    job = JOBS[name]

    def main() -> None:
        args = driver.arguments(job.about, job.config_class, argv)
        if args.config is not None:
            args.config = named_run(args.config)
        job.launch(driver.resolve(args, job.config_class), args)

    return driver.run_job(main)
