"""`ray job stop` in the middle of a run: a checkpoint is there, no actor, no group and no application is left, and the
resumed run ends with the numbers of one that was never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.two_nodes import TwoNodes
from zr_ray.operate.chaos import GDSO, T2I, differing

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
SETTINGS = {"gdso": GDSO | {"gdso.steps": "8"}, "t2i": T2I | {"t2i.steps": "8"}}
LEFT = """
import json, sys, time, ray
from zr_ray.operate.victims import held
ray.init(sys.argv[1], namespace="zr_ray", log_to_driver=False, configure_logging=False)
for _ in range(120):
    found = held()
    left = [*found.actors.values(), *found.groups.values(), *found.applications]
    if not left:
        break
    time.sleep(1)
print(json.dumps(left))
"""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []


@pytest.mark.parametrize("job", SETTINGS)
def test_a_stopped_job_leaves_a_checkpoint_and_nothing_else(job, tmp_path):
    with TwoNodes({"CPU": 2}, None, {"PYTHONPATH": ""}) as node:
        environment = os.environ | {"RAY_ADDRESS": node.dashboard, "RAY_AUTH_MODE": "disabled"}

        def ray(*arguments: str, timeout: float = 900) -> subprocess.CompletedProcess:
            return subprocess.run(
                [RAY, "job", *arguments], env=environment, capture_output=True, text=True, timeout=timeout, cwd=tmp_path
            )

        def submit(name: str, *more: str) -> subprocess.CompletedProcess:
            told = [f"{key}={value}" for key, value in SETTINGS[job].items()]
            told += ["checkpoint.every_steps=50", f"run.root={tmp_path}"]
            entry = ["python", f"jobs/{job}.py", "--config", f"jobs/configs/{job}_tiny.yaml", *told, *more]
            wait = ["--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}})]
            follow = ["--no-wait"] if name == "stopped" else []
            sent = ["--submission-id", name, "--working-dir", str(ROOT), *wait, *follow]
            return ray("submit", *sent, "--", *entry)

        assert (done := submit("whole", "run.name=whole")).returncode == 0, done.stdout[-3000:]
        assert submit("stopped", "run.name=stopped").returncode == 0
        end = time.monotonic() + 600
        while not metrics(tmp_path / "stopped"):
            assert time.monotonic() < end, ray("logs", "stopped").stdout[-3000:]
            time.sleep(0.1)
        assert ray("stop", "stopped").returncode == 0
        log = ray("logs", "stopped").stdout
        assert "stopped on request after step" in log, log[-3000:]
        (checkpoint,) = (tmp_path / "stopped" / "checkpoints").glob("step_*")
        assert 1 <= int(checkpoint.name[-6:]) < 8
        ask = [sys.executable, "-c", LEFT, node.address]
        left = subprocess.run(
            ask, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
        )
        assert json.loads(left.stdout.splitlines()[-1]) == [], left.stderr[-2000:]
        again = submit("again", "--resume", str(tmp_path / "stopped"))
        assert again.returncode == 0, again.stdout[-3000:]
    assert differing(metrics(tmp_path / "stopped"), metrics(tmp_path / "whole")) == []
