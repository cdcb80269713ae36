"""How much of a step's wall-clock time was training: a process that is halted (SIGSTOP, a suspended machine) does not
train meanwhile.

A schedule that follows the clock must not jump when its process comes back. Processor time would not do on a GPU, nor
with many threads.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST_MEDIANS = 5
"""A step counts for at most this many times the median of the latest: slow steps of a busy machine count in full, a
halt does not."""
LATEST = 51
"""Steps in that median."""


class StepClock:
    """Durations of the latest steps of this process."""

    def __init__(self) -> None:
        self.latest: deque[float] | None = None

    def counted(self, duration_s: float) -> float:
        """Seconds to count for a step that took `duration_s`. The first step of a process, which compiles, does not
        count."""
        if self.latest is None:
            self.latest = deque(maxlen=LATEST)
            return 0.0
        most = MOST_MEDIANS * median(self.latest) if self.latest else duration_s
        self.latest.append(duration_s)
        return min(duration_s, most)
