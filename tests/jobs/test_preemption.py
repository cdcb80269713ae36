"""A cloud announces that the learner's node goes: the run writes a checkpoint at once, and when the node is gone it
goes on from there on the node that came instead, to the figures of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.two_nodes import TwoNodes
from zr_ray.operate.chaos import GDSO, differing

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
STEPS = 80
NODES_TOLD = {"PYTHONPATH": str(ROOT), "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
"""tests/conftest.py switches Ray Train's watcher off, for speed."""
NODE = """
import ray, sys
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
print(next(node["NodeID"] for node in ray.nodes() if node["Alive"] and "zr_b" in node["Resources"]))
"""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.is_file() else []


def wait_for(condition, what: str, job: subprocess.Popen, log: Path, deadline_s: float = 400.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert job.poll() is None and time.monotonic() < end, f"no {what}: {log.read_text()[-3000:]}"
        time.sleep(0.2)


def test_an_announced_end_of_a_node_costs_no_step(run_job, ray_cluster, tmp_path):
    told = [f"{key}={value}" for key, value in (GDSO | {"gdso.steps": str(STEPS)}).items()]
    told += ["evaluation.every_steps=0", "checkpoint.every_steps=1000", f"run.root={tmp_path}"]
    config = str(ROOT / "jobs" / "configs" / "gdso_tiny.yaml")
    assert run_job("gdso", "--config", config, *told, "run.name=calm") == 0
    with TwoNodes({"CPU": 1, "zr_a": 1}, {"CPU": 1, "zr_b": 1}, NODES_TOLD) as nodes:
        environment = os.environ | NODES_TOLD | {"RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"}
        places = ["rollout.resource=zr_a", "learner.resource=zr_b", "run.name=told"]
        entry = [sys.executable, "jobs/gdso.py", "--config", config, *told, *places]
        log, run = tmp_path / "told.log", tmp_path / "told"
        with open(log, "w") as output:
            job = subprocess.Popen(entry, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: len(metrics(run)) >= 2, "second step", job, log)
            asked = subprocess.run(
                [sys.executable, "-c", NODE, nodes.address],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            going = asked.stdout.split()[-1]
            notice = [RAY, "drain-node", f"--address={nodes.address}", f"--node-id={going}"]
            notice += [
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=spot",
                "--deadline-remaining-seconds=600",
            ]
            subprocess.run(notice, env=environment, check=True, capture_output=True, timeout=120)
            wait_for(lambda: list((run / "checkpoints").glob("step_*")), "checkpoint", job, log, 120)
            (saved,) = (run / "checkpoints").glob("step_*")
            at = int(saved.name[-6:])
            assert 2 <= at < STEPS
            nodes.replace("b", "c", {"CPU": 1, "zr_b": 1})
            assert job.wait(600) == 0, log.read_text()[-4000:]
        finally:
            job.kill()
    assert f"resumed after step {at} " in log.read_text()
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert differing(metrics(run), metrics(tmp_path / "calm")) == []
