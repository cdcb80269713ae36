"""Stopping a training run at the end of a step: the driver leaves a mark in the run folder, the learners look for it.

A signal to the driver would otherwise end the learners in the middle of a step, and everything since the last
checkpoint with them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zr_ray.run.observe import say

_MARK = "stop"


@contextmanager
def stops_after_step(run_path: Path) -> Iterator[None]:
    """While the block runs, the first SIGTERM asks the learners to save and stop; the second one raises
    KeyboardInterrupt here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(signum, frame) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        (run_path / _MARK).touch()
        say("asked to stop: saving a checkpoint at the end of this step; ask again to stop at once")

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _interrupt(signum, frame) -> None:
    raise KeyboardInterrupt


def stop_asked(run_path: Path) -> bool:
    """Whether the run should end after this step."""
    return (run_path / _MARK).exists()


def forget_stop(run_path: Path) -> None:
    """A run that starts, or goes on, has not been asked to stop."""
    (run_path / _MARK).unlink(missing_ok=True)
