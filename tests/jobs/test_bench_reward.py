"""The service's benchmark in a cluster of its own: rows, and an end without complaints of libraries."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_and_ends_without_a_red_line(tmp_path):
    """`serve.shutdown()` printed `graceful_shutdown failed ... infinite retries` at the end of every run."""
    command = [sys.executable, str(ROOT / "jobs" / "bench" / "reward.py"), "--parts", "service", "--callers", "1"]
    command += ["--seconds", "0.5", "--images", "2", "--output", str(tmp_path / "rows.json")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"graceful_shutdown|infinite retries|Traceback|ERROR|\x1b\[31m", said), said
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {row["way"] for row in found["rows"]} >= {"service, handle, tensors", "service, HTTP, PNG in JSON"}
    assert found["gradient"]["largest_relative_difference"] < 1e-5
