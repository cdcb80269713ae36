"""The runs that a table is made of: where each lies, whether it is finished, the command line that makes it; and
running those that are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.table import RowChoice
from zr_ray.run.folder import CONFIG_FILE, RESULT_FILE, RunFolder
from zr_ray.run.observe import duration, say


@dataclass(frozen=True)
class RowRun:
    """One run of one job: a row of a judge with a seed."""

    row: str
    judge: str
    """Size name; empty in a table that has no judges."""
    seed: int
    job: str
    folder: Path
    config: Path | None
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder name."""
        return "-".join(filter(None, (self.row, self.judge, f"s{self.seed}")))

    @property
    def finished(self) -> bool:
        """Whether the run's result is there."""
        return (self.folder / RESULT_FILE).is_file()

    def result(self) -> dict:
        """Content of the run's result.json."""
        return json.loads((self.folder / RESULT_FILE).read_text())

    def metrics(self) -> list[dict]:
        """The run's metrics, one line a step; none of a run that trains nothing."""
        return RunFolder(self.folder).read_metrics()

    def command(self, jobs: Path) -> list[str]:
        """The job's command line; resumes what was interrupted."""
        named = ["--config", str(self.config)] if self.config else []
        resume = ["--resume", str(self.folder)] if (self.folder / CONFIG_FILE).is_file() else []
        return [sys.executable, str(jobs / f"{self.job}.py"), *named, *resume, *self.overrides]


def base_rows(rows: dict[str, RowChoice]) -> list[str]:
    """Rows that train nothing: one run of them stands for every seed."""
    return [name for name, choice in rows.items() if choice.job == "evaluate" and not choice.of]


def run_missing(
    runs: Sequence[RowRun],
    jobs: Path,
    folder: RunFolder,
    at_once: int,
    until: float | None,
    told: Callable[[RowRun], str],
    later: Callable[[RowRun], bool] = lambda run: False,
) -> list[str]:
    """Run what has no result yet, `at_once` at a time, each a job of its own in the cluster of this one, its output in
    the table's logs/.

    Args: jobs: folder of the job files. folder: of the table. until: time.time() after which nothing is started; None:
        no limit. told: what the log says of a finished run. later: runs that come after all others.
    Returns: the names of those that failed."""
    missing = [run for run in runs if not run.finished]
    failed: list[str] = []
    running: set[subprocess.Popen] = set()
    begun, done = time.time(), 0

    def one(run: RowRun) -> None:
        nonlocal done
        if until is not None and time.time() > until:
            return
        if not _run(run, jobs, folder, running, told):
            failed.append(run.name)
        done += 1
        left = len(missing) - done
        say(
            f"{len(runs) - left} of {len(runs)} runs"
            + (f", about {duration((time.time() - begun) / done * left)} to go" if left else "")
        )

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for turn in (False, True):
                list(pool.map(one, [run for run in missing if later(run) == turn]))
        except BaseException:  # a signal: end what runs, start nothing more
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    if done < len(missing):
        say(
            f"stopped after {duration(time.time() - begun)} (table.stop_after_s) with {len(missing) - done} runs to go;"
            " --resume goes on"
        )
    return failed


def _run(
    run: RowRun, jobs: Path, folder: RunFolder, running: set[subprocess.Popen], told: Callable[[RowRun], str]
) -> bool:
    """Run one job to its end with its output in a log file; it is in `running` meanwhile. Returns whether it
    finished."""
    import ray

    log = folder.path / "logs" / f"{run.name}.log"
    log.parent.mkdir(exist_ok=True)
    say(f"{run.name}: log {log}")
    start = time.time()
    # a process of its own per run: what one leaves in memory, or its death, is no business of the next
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(jobs.parent)}
    with open(log, "a") as file:  # a resumed run goes on in its log
        process = subprocess.Popen(
            run.command(jobs), env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=jobs.parent
        )
        running.add(process)
        code = process.wait()
        running.discard(process)
    result = told(run) if run.finished else f"FAILED with code {code}: {log.read_text().splitlines()[-1:]}"
    say(f"{run.name}: {result}, {duration(time.time() - start)}")
    return run.finished
