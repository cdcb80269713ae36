"""Ends a process that hangs: a collective whose peer does not answer, an engine that does not come back.

Python's own `faulthandler` does it, from a thread that needs no interpreter lock: when a phase outlives its deadline it
writes the stack of every thread to a file and ends the process. Ray Train then sees a lost rank, and `run_learners`
goes on from the newest checkpoint. A process that is frozen as a whole cannot watch itself; Ray Train finds that one.
Left out on purpose: phases whose length is the data's (a whole evaluation); every single call in them has its deadline.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STACKS = "stacks"
"""Folder of the run folder."""


class Watchdog:
    """One per process: phases must not lie inside one another."""

    def __init__(self, run_path: Path, name: str, deadlines_s: Mapping[str, float]) -> None:
        """name: of the process, for its file. deadlines_s: phase -> seconds it may take; other phases are not
        watched."""
        self._file_path, self._deadlines_s = Path(run_path) / STACKS / f"{name}.txt", deadlines_s
        self._file = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Watches the block, if its phase has a deadline."""
        deadline_s = self._deadlines_s.get(phase)
        if deadline_s is None:
            yield
            return
        if self._file is None:  # stays open: a hanging process may not be able to open one any more
            self._file_path.parent.mkdir(exist_ok=True)
            self._file = open(self._file_path, "a")
        faulthandler.dump_traceback_later(deadline_s, exit=True, file=self._file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def stacks_of(run_path: Path) -> list[Path]:
    """Files in which a hanging process of the run left its stacks."""
    return sorted(path for path in (Path(run_path) / STACKS).glob("*.txt") if path.stat().st_size)
