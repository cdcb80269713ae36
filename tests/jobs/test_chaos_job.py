"""Chaos at its smallest: one fault of each kind, in both runs, on the tests' own cluster."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parents[2] / "jobs" / "chaos.py"


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("only", "kinds"), [("gdso", {"rollout", "learner", "driver"}), ("t2i", {"learner", "replica", "driver"})]
)
def test_nothing_is_lost_doubled_different_or_left(ray_cluster, tmp_path, only, kinds):
    code = runpy.run_path(str(JOB))["main"](["--only", only, "--faults", "1", "--root", str(tmp_path), "--seed", "5"])
    (folder,) = tmp_path.glob("chaos-*")
    report = json.loads((folder / "report.json").read_text())
    calm, hit = report["runs"]
    assert {fault["kind"] for fault in hit["faults"]} == kinds and calm["faults"] == []
    assert not any(calm["counters"].values()) and not any(hit["counters"].values()), hit["details"]
    assert code == 0 and "| counter |" in (folder / "report.md").read_text()
