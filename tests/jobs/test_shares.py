"""py-spy's samples added up, by hand and of a process of our own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "jobs" / "bench" / "shares.py"
spec = importlib.util.spec_from_file_location("shares", HERE)
shares = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shares)

RAW = """\
run (main.py:1);forward (zr_ray/models/judge.py:60);linear (torch/nn/modules/linear.py:3) 6
run (main.py:2);forward (zr_ray/models/judge.py:61) 3
run (main.py:2);forward (zr_ray/models/judge.py:61);forward (zr_ray/models/judge.py:70);f (/x/vllm/a.py:1) 1
Thread._bootstrap (threading.py:1);Condition.wait (threading.py:331) 50
"""


def test_shares_by_hand():
    total, packages, functions = shares.added_up(RAW)
    assert total == 10, "a thread that waits is no part of it"
    assert packages == {"torch": 6, "zr_ray": 3, "vllm": 1}, "zr_ray/ is not ray/"
    assert functions["judge.py forward"] == 10, "a function that calls itself counts once a sample"
    assert functions["linear.py linear"] == 6
    assert "| torch | 60% |" in shares.report(RAW, 5) and "no samples" in shares.report("", 5)


@pytest.mark.slow
def test_a_score_request_is_profiled():
    command = [sys.executable, str(HERE), "score", "--judge", "builtin", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if "Permission" in done.stderr:
        pytest.skip("this user may not trace processes")
    assert done.returncode == 0 and "`student.py Student.forward`" in done.stdout, done.stdout + done.stderr
