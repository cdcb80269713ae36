"""The job log, and what libraries say beside it.

vLLM, transformers and Ray greet every job with dozens of lines. While `apart` holds, file descriptors 1 and 2 lead to a
file, named in the job log, and only `write` reaches the log itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARY_FILE = "libraries.log"
_log = None
_file: Path | None = None
_allowed = False


def write(line: str) -> None:
    """One line of the job log, at once."""
    print(line, file=_log or sys.stdout, flush=True)


@contextmanager
def may_part() -> Iterator[None]:
    """Allows `part` inside the block; whatever happens, the descriptors are as before when it ends."""
    global _allowed, _log, _file
    if sys.stdout is not sys.__stdout__:  # somebody captures output already
        yield
        return
    saved = [os.dup(1), os.dup(2)]
    _allowed = True
    try:
        yield
    finally:
        _allowed = False
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        if _log is not None:
            _log.close()
        _log, _file = None, None


def part() -> None:
    """From here on, what libraries print goes to a file. Only inside `may_part`."""
    global _log
    if not _allowed or _log is not None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    _log = os.fdopen(os.dup(1), "w")
    descriptor, name = tempfile.mkstemp(prefix="zr_ray-", suffix=f"-{LIBRARY_FILE}")
    _lead_to(descriptor, Path(name))


def move_to(folder: Path) -> None:
    """Keep the libraries' file in a run folder, with what it holds so far."""
    if _log is None or _file is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    before, target = _file, folder / LIBRARY_FILE
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, before.read_bytes())
    _lead_to(descriptor, target)
    before.unlink()


def library_file() -> Path | None:
    """Where libraries print to, if not to the job log."""
    return _file


def _lead_to(descriptor: int, file: Path) -> None:
    global _file
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    _file = file
