"""Python's garbage collector, while a large set is read, packed or unpacked."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Records are a million objects that stay, in no cycle: the garbage collector's passes over those of 100,000 took
    half the time. Not for blocks that decode: what an image library leaves behind may need collecting."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leave_alone() -> None:
    """Let no collection look at what is there now, in a process that keeps it to its end: one over 100,000 records
    takes a second, and DeepSpeed's start asks for several. At the process's end it is looked at again: libraries that
    count what they left behind (nanobind, in Triton) would call all of it leaked."""
    gc.freeze()
    atexit.register(gc.unfreeze)
