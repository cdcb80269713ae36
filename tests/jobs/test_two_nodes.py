"""GDSO and T2I on two nodes that share run folders only, submitted as users do: the figures of one node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.two_nodes import TwoNodes
from zr_ray.operate.chaos import GDSO, T2I, differing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
RUNS = {
    "gdso": (
        GDSO | {"gdso.steps": "3", "evaluation.every_steps": "2"},
        ["rollout.resource=zr_a", "learner.resource=zr_b"],
    ),
    "t2i": (T2I | {"t2i.steps": "3", "held_out.every_steps": "2"}, ["actor.resource=zr_b", "reward.resource=zr_a"]),
}


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("job", RUNS)
def test_two_nodes_give_the_figures_of_one(job, run_job, ray_cluster, tmp_path):
    """The checkout is uploaded; each node unpacks it in its own folder, and nothing of it is found by its path."""
    settings, places = RUNS[job]
    told = [f"{key}={value}" for key, value in settings.items()] + ["checkpoint.every_steps=2", f"run.root={tmp_path}"]
    config = str(ROOT / "jobs" / "configs" / f"{job}_tiny.yaml")
    assert run_job(job, "--config", config, *told, "run.name=one") == 0
    environment = {"PYTHONPATH": ""}  # what the nodes import is what was uploaded
    with TwoNodes({"CPU": 1, "zr_a": 1}, {"CPU": 1, "zr_b": 1}, environment) as nodes:
        entry = [
            "python",
            f"jobs/{job}.py",
            "--config",
            f"jobs/configs/{job}_tiny.yaml",
            *told,
            *places,
            "run.name=two",
        ]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", str(ROOT), "--", *entry],
            env=os.environ | {"RAY_ADDRESS": nodes.dashboard, "RAY_AUTH_MODE": "disabled"},
            capture_output=True, text=True, timeout=1200, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + nodes.log()
    assert len(metrics(tmp_path / "two")) == 3
    assert differing(metrics(tmp_path / "two"), metrics(tmp_path / "one")) == []
