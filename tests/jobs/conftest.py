"""Jobs in the tests' own process: no second interpreter has to import torch, transformers and Ray."""

import runpy
import signal
from pathlib import Path

import pytest

from zr_ray.run import driver

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="session")
def run_job():
    """Run `main` of jobs/<name>.py with these arguments; returns the exit code. Signal handlers stay as they were."""

    def run(name: str, *arguments) -> int:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        main = runpy.run_path(str(JOBS / f"{name}.py"), run_name="job")["main"]
        try:
            return driver.run_job(lambda: main([str(a) for a in arguments]))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return run
