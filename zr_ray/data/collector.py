"""Python's garbage collector, while a large set is read, packed or unpacked."""

from __future__ import annotations

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
