"""`python -m zr_ray <command>`: what one does before, beside and after a run, and the runs themselves. Each has --help.

doctor    is this machine fit: versions, compiler, GPUs, ports, disk, token
plan      which node type holds which worker of a job, and does it fit
validate  are these cluster files right
status    the runs of a folder: where they are, how old their last sign of life is
gc        what dead runs left on a cluster

gdso, sft, risd, opd, t2i, evaluate, audit, serve    the jobs, without a checkout; --config takes a named run's name
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("doctor", "plan", "validate", "status", "gc")


def main(argv: list[str]) -> int:
    """Exit code of a command; 2 if there is none of that name."""
    from zr_ray.errors import ZrRayError
    from zr_ray.operate.jobs import JOBS, run

    if argv and argv[0] in JOBS:
        return run(argv[0], argv[1:])
    if not argv or argv[0] not in COMMANDS:
        print(__doc__.strip())
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    try:
        return importlib.import_module(f"zr_ray.operate.{argv[0]}").main(argv[1:])
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
