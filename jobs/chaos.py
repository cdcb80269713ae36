"""Kill workers, learners, diffusion actors, reward replicas and drivers of tiny GDSO and T2I runs at seeded random
points, and count what it costs: nothing may be lost, doubled, different or left behind.

    python jobs/chaos.py --seed 0 --faults 4

Starts a Ray of its own on this machine, or joins that of RAY_ADDRESS; kills processes of this machine only. Leaves a
folder with report.md, report.json, the runs and their logs; exit code 1 if any counter is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from zr_ray.config.arguments import seed, whole
from zr_ray.operate.chaos import GDSO_KINDS, T2I_KINDS, Outcome, chaos, table
from zr_ray.run import driver
from zr_ray.run.folder import default_root
from zr_ray.run.observe import duration, say


def main(argv: list[str] | None = None) -> int:
    """Exit code. Raises ZrRayError for everything a user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=seed, default=0, help="of what is killed when, default 0")
    parser.add_argument("--faults", type=whole(1, 50), default=4, help="kills of each kind, default 4")
    parser.add_argument("--only", choices=("gdso", "t2i"), help="one of the two runs; drivers are shared between them")
    parser.add_argument("--root", type=Path, help="where the folder goes (default: the root of run folders)")
    args = parser.parse_args(argv)

    import ray

    root = args.root.resolve() if args.root else default_root()
    folder = root / f"chaos-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True)
    driver.connect(namespace="zr_ray")
    address, started = ray.get_runtime_context().gcs_address, time.monotonic()
    say(f"folder {folder}")
    outcomes: list[Outcome] = []
    drivers = {"gdso": args.faults - args.faults // 2, "t2i": args.faults // 2}
    for job, kinds in (("gdso", GDSO_KINDS), ("t2i", T2I_KINDS)):
        if args.only in (None, job):
            killed = [*kinds * args.faults, *["driver"] * (args.faults if args.only else drivers[job])]
            outcomes += chaos(job, killed, folder, address, args.seed)
            _write(folder, outcomes, args)
    bad = [f"{o.job}: {name} {n}" for o in outcomes for name, n in o.counters.items() if n]
    say(f"{duration(time.monotonic() - started)}; {'all counters are 0' if not bad else '; '.join(bad)}")
    say(f"report {folder / 'report.md'}")
    return 1 if bad else 0


def _write(folder: Path, outcomes: list[Outcome], args: argparse.Namespace) -> None:
    text = table(outcomes)
    say(text)
    (folder / "report.md").write_text(text + "\n")
    facts = {"seed": args.seed, "faults": args.faults, "cores": os.cpu_count(), "runs": [asdict(o) for o in outcomes]}
    (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    code = 0

    def run() -> None:
        global code
        code = main()

    sys.exit(driver.run_job(run) or code)
