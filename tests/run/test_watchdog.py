"""A phase that outlives its deadline ends its process and leaves its stacks; others are left alone."""

from __future__ import annotations

import subprocess
import sys
import time

from zr_ray.run.watchdog import Watchdog, stacks_of

HANGING = """
import sys, threading
from pathlib import Path
from zr_ray.run.watchdog import Watchdog

def waits_for_a_peer_that_never_answers():
    threading.Event().wait(100)

watchdog = Watchdog(Path(sys.argv[1]), "rank3", {"train": 1.0, "push": 50.0})
with watchdog("push"):
    pass
print("in time", flush=True)
with watchdog("train"):
    waits_for_a_peer_that_never_answers()
"""


def test_a_hanging_phase_ends_its_process_and_leaves_the_stack(tmp_path):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGING, str(tmp_path)], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1 and done.stdout == "in time\n" and time.monotonic() - started < 80
    (file,) = stacks_of(tmp_path)
    assert file.name == "rank3.txt" and "waits_for_a_peer_that_never_answers" in file.read_text()


def test_what_ends_in_time_or_has_no_deadline_leaves_nothing(tmp_path):
    watchdog = Watchdog(tmp_path, "rank0", {"train": 0.2})
    with watchdog("train"):
        pass
    with watchdog("evaluate"):
        time.sleep(0.4)
    time.sleep(0.3)
    assert stacks_of(tmp_path) == []
