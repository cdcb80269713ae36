"""A run that is told to stop finishes its step, writes a checkpoint and ends: `ray job stop`, a preempted driver.

The driver gets the signal, the learners hear of it through a file in the run folder, which both see. Ray kills a
stopped job after RAY_JOB_STOP_WAIT_TIME_S (3 s unless the job's runtime_env says more), so the driver waits only as
long as that.
Left out on purpose: SIGINT. Ray Train answers it itself, and a user at a keyboard wants the end, not a step more.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zr_ray.run.observe import duration, say

STOP_FILE = "stop.requested"
WAIT_VARIABLE, RAYS_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3.0
"""What the job's environment says about the time between the signal and the kill, and Ray's default."""
LEAVE_S = 10.0
"""Kept of that time for ending actors and placement groups."""


def grace_s() -> float:
    """Seconds that a stopped job may still train; 0 if there is no time for a step."""
    return max(0.0, float(os.environ.get(WAIT_VARIABLE, RAYS_WAIT_S)) - LEAVE_S)


def is_requested(run_path: Path) -> bool:
    """Whether this run shall stop after its step."""
    return (Path(run_path) / STOP_FILE).exists()


def forget(run_path: Path) -> None:
    """A run that starts, or is resumed, has not been told to stop."""
    (Path(run_path) / STOP_FILE).unlink(missing_ok=True)


@contextmanager
def checkpoint_first(run_path: Path) -> Iterator[None]:
    """While the block runs, SIGTERM asks the learners for a checkpoint; the block is interrupted when they have not
    ended in `grace_s`, or at a second SIGTERM. After `ray.init`, which installs its own. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread only
        return
    grace = grace_s()

    def interrupt(signum, frame) -> None:
        raise KeyboardInterrupt

    def ask(signum, frame) -> None:
        if grace == 0 or is_requested(run_path):
            raise KeyboardInterrupt
        (Path(run_path) / STOP_FILE).touch()
        signal.setitimer(signal.ITIMER_REAL, grace)
        say(f"stopping: the learners finish their step and write a checkpoint, at most {duration(grace)}")

    before = signal.signal(signal.SIGTERM, ask), signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
