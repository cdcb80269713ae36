"""A service and two trainings at once on two cores: nobody holds half of what it needs, each says what it waits for
and ends by its deadline; and when there is room they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.two_nodes import TwoNodes
from zr_ray.operate.chaos import GDSO
from zr_ray.serving.launch import free_port

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 40.0
SAID_S = 60.0
"""What a job waits for must be said so soon."""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


class Job:
    """A job in a process of its own, and what it has said."""

    def __init__(self, folder: Path, name: str, environment: dict[str, str], *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self, text: str, deadline_s: float) -> float:
        """Seconds until it says `text`. It may have ended by then."""
        started = time.monotonic()
        while text not in self.log.read_text():
            left = deadline_s - (time.monotonic() - started)
            ended = self.process.poll() is not None and text not in self.log.read_text()
            assert left > 0 and not ended, f"{text!r} was not said: {self.log.read_text()[-3000:]}"
            time.sleep(0.2)
        return time.monotonic() - started


def gdso(folder: Path, name: str, environment: dict[str, str], *more: str) -> Job:
    settings = GDSO | {"gdso.steps": "2", "evaluation.every_steps": "0", "learner.cpus": "1"}
    told = [f"{key}={value}" for key, value in settings.items()] + [f"run.root={folder}", f"run.name={name}", *more]
    return Job(folder, name, environment, "jobs/gdso.py", "--config", "jobs/configs/gdso_tiny.yaml", *told)


def test_a_service_and_two_trainings_on_two_cores(tmp_path):
    jobs: list[Job] = []
    with TwoNodes({"CPU": 2}, None, {"PYTHONPATH": str(ROOT)}) as node:
        environment = os.environ | {"RAY_ADDRESS": node.address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        try:
            service = Job(tmp_path, "serve", environment, "jobs/serve_reward.py", f"http.port={free_port('127.0.0.1')}")
            jobs.append(service)
            service.said("ready after", 600)
            both = [gdso(tmp_path, name, environment, f"run.wait_for_room_s={WAIT_S}") for name in ("one", "two")]
            jobs += both
            for job in both:
                job.said("folder ", 300)
                assert job.said("waiting for", SAID_S) <= SAID_S
            for job in both:
                assert job.process.wait(WAIT_S + 240) == 1
                last = job.log.read_text().splitlines()[-1]
                assert last.startswith("error: ") and "did not get" in last and "Traceback" not in job.log.read_text()
            assert any("Serve's" in job.log.read_text() for job in both), "who holds what is named"
            assert service.process.poll() is None, "the service was left alone"
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(240)
            # two trainings that need both cores each: the second waits for the first
            pair = [gdso(tmp_path, name, environment, "run.wait_for_room_s=900") for name in ("three", "four")]
            jobs += pair
            assert [job.process.wait(900) for job in pair] == [0, 0]
            assert any("waiting for" in job.log.read_text() for job in pair)
        finally:
            for job in jobs:
                if job.process.poll() is None:
                    job.process.kill()
