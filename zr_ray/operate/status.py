"""The runs under a root: what they are at, how old their last sign of life is, what they could be resumed from.

    python -m zr_ray status [--root RUNS] [--run ID]

Reads run folders only, so it works while the cluster is down, and for runs of other machines on the shared folder.
Left out on purpose: whether a silent run is dead. `gc` asks the cluster about that.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from zr_ray.errors import ConfigError
from zr_ray.run.folder import CONFIG_FILE, METRICS_FILE, RESULT_FILE, default_root
from zr_ray.run.observe import duration

SILENT_S = 600.0
"""A run without a result that wrote nothing for so long is called silent."""


@dataclass(frozen=True)
class RunStatus:
    """What a run's folder says."""

    run_id: str
    state: str
    """`SUCCEEDED` and the like from its result; `running`, or `silent`, without one."""
    step: int | None
    """Last step with metrics."""
    phase: str
    """Last line of its progress log."""
    silent_s: float
    """Seconds since any file of it was written to."""
    checkpoint: int | None
    """Step of the newest complete checkpoint."""
    checkpoint_age_s: float | None


def read_status(folder: Path, now: float) -> RunStatus:
    """Status of one run folder at time `now` (time.time())."""
    from zr_ray.run.checkpoints import latest_checkpoint

    lines = _tail(folder / METRICS_FILE)
    progress = _tail(folder / "progress.log")
    written = [p.stat().st_mtime for p in folder.iterdir() if p.is_file()]
    silent = now - max(written, default=folder.stat().st_mtime)
    result = folder / RESULT_FILE
    state = "silent" if silent > SILENT_S else "running"
    if result.is_file():
        state = json.loads(result.read_text())["status"]
    found = latest_checkpoint(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    step = json.loads(lines[-1])["step"] if lines else None
    return RunStatus(
        folder.name, state, step, progress[-1] if progress else "", silent,
        found[0] if found else None, now - found[1].stat().st_mtime if found else None,
    )  # fmt: skip


def _tail(path: Path) -> list[str]:
    """Complete lines among the last 64 KiB of a file."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    return [line for line in text.split("\n")[:-1] if line.strip()]


def all_runs(root: Path) -> list[Path]:
    """Run folders under a root, the newest first. Raises ConfigError if there is no such folder."""
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder; name the root of the run folders with --root")
    runs = [p for p in root.iterdir() if (p / CONFIG_FILE).is_file() and not p.is_symlink()]
    return sorted(runs, key=lambda p: p.stat().st_mtime, reverse=True)


def line(status: RunStatus) -> str:
    """One row of the table."""
    checkpoint = "no checkpoint"
    if status.checkpoint is not None and status.checkpoint_age_s is not None:
        checkpoint = f"checkpoint of step {status.checkpoint}, {duration(status.checkpoint_age_s)} old"
    step = f"step {status.step}" if status.step is not None else "no step yet"
    return f"{status.run_id}  {status.state}  {step}  last sign {duration(status.silent_s)} ago  {checkpoint}"


def main(argv: list[str]) -> int:
    """Exit code. Raises ZrRayError for everything a user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m zr_ray status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="root of run folders (default: the one a job would take)")
    parser.add_argument("--run", help="only this run, with the last lines of its progress")
    args = parser.parse_args(argv)
    root = args.root or default_root()
    runs = [root / args.run] if args.run else all_runs(root)
    if args.run and not (runs[0] / CONFIG_FILE).is_file():
        raise ConfigError(f"{runs[0]} is no run folder; `python -m zr_ray status --root {root}` lists them")
    for folder in runs:
        print(line(read_status(folder, time.time())))
        for text in _tail(folder / "progress.log")[-5:] if args.run else []:
            print(f"    {text}")
    if not runs:
        print(f"no run in {root}")
    return 0
