"""DeepSpeed's compiled operator for collectives through shared memory (CPU), loaded by one process at a time.

torch guards the folder it compiles in by a file that a killed process leaves behind; whoever comes later waits for that
file for ever and says nothing. So a lock that ends with its holder goes around it, and what the file means is decided
under that lock.
Left out on purpose: operators for GPUs, which DeepSpeed's wheels or the first step of a run bring.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zr_ray.errors import DeadlineError
from zr_ray.run.observe import duration, say

NAME = "deepspeed_shm_comm"
GUARD, LOCK = "lock", "zr_ray.lock"
"""torch's file, and ours."""
DEADLINE_S = 900.0
STALE_S = 300.0
"""A guard of a folder in which nothing was compiled yet may belong to a compiler outside zr_ray for so long."""


def load_collective(folder: Path | None = None) -> None:
    """Load the operator into this process, compiling it where that was not done yet (half a minute).

    Args: folder: that torch compiles in; None: the one that TORCH_EXTENSIONS_DIR means. Raises: DeadlineError."""
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        return
    folder = Path(folder or _get_build_directory(NAME, verbose=False))
    with held(folder / LOCK):
        clear_guard(folder)
        builder.load()


@contextmanager
def held(path: Path, deadline_s: float = DEADLINE_S) -> Iterator[None]:
    """The kernel's lock on a file, which ends with the process. Raises DeadlineError when somebody else keeps it."""
    end, said = time.monotonic() + deadline_s, False
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise DeadlineError(
                        f"another process has kept {path} for {duration(deadline_s)} to compile an operator of"
                        " DeepSpeed; end it, or give this run a TORCH_EXTENSIONS_DIR of its own"
                    ) from None
                if not said:
                    said = True
                    say(f"waiting for another process to compile an operator of DeepSpeed ({path.parent})")
                time.sleep(0.2)
        yield


def clear_guard(folder: Path, stale_s: float = STALE_S) -> None:
    """Remove torch's guard file if nobody can be compiling under it: the operator is there, or the file is old. Waits
    until one of them holds. Our own lock must be held."""
    guard = folder / GUARD
    while guard.exists() and not (folder / f"{NAME}.so").exists():
        try:
            age = time.time() - guard.stat().st_mtime
        except FileNotFoundError:
            return
        if age > stale_s:
            break
        time.sleep(0.5)
    if guard.exists():
        say(f"a process that was killed left {guard}; removed")
        guard.unlink(missing_ok=True)
