"""Both versions of Ray's autoscaler bring the nodes of a GDSO job, each role on its own type, take them away again,
and leave no process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.autoscaling import FakeCluster

ROOT = Path(__file__).resolve().parents[2]
NODE_TYPES = {
    "rollout": {"resources": {"CPU": 2, "GPU": 1, "zr_rollout": 1}, "max_workers": 4},
    "learner": {"resources": {"CPU": 4, "GPU": 2, "zr_learner": 1}, "max_workers": 1},
}
JOB = {
    "rollout": {"workers": 2, "cpus": 1, "gpus": 1, "resource": "zr_rollout"},
    "learner": {"workers": 2, "cpus": 1, "gpus": 1, "resource": "zr_learner"},
}


@pytest.mark.cluster
@pytest.mark.parametrize("version", [1, 2])
def test_nodes_come_for_a_job_and_go(version):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    with FakeCluster(NODE_TYPES, version) as cluster:
        job = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("autoscaled_job.py")), cluster.address, json.dumps(JOB)],
            env=environment, capture_output=True, text=True, timeout=700,
        )  # fmt: skip
        cluster.check()
        assert job.returncode == 0, job.stderr[-3000:] + cluster.autoscaler_log()
        seen = json.loads(job.stdout.splitlines()[-1])
        print(seen)
        assert cluster.stop() == []
    assert (seen["before"], seen["after"], seen["gpus_after"]) == (1, 1, 0), seen
    assert seen["peak"] == {"nodes": 4, "gpus": 4.0}, "two rollout nodes and one learner node beside the head"
    for role, nodes in seen["where"].items():
        assert len(nodes) == 2 and all(f"zr_{role}" in node for node in nodes), (role, nodes)
    left = [
        p.info
        for p in psutil.process_iter(["pid", "cmdline"])
        if str(cluster.folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []
