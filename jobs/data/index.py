"""Index the images of an annotated data set: decode every one of them once, on all nodes of a Ray cluster, and keep
size, hash and notes beside the set. Runs then start without opening the images, whatever their number.

    python jobs/data/index.py DATA
    python jobs/data/index.py DATA --dry-run                              # says what is to be read
    ray job submit --working-dir . -- python jobs/data/index.py DATA      # on a cluster

Writes DATA/image_index.parquet (`zr_ray/data/image_index.py` says what is in it). Run it again after images were added
or changed: it reads these only. A job that was killed goes on where it was. Every record whose image cannot be used is
listed with its line and the reason; nothing is removed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zr_ray.config.arguments import number, whole
from zr_ray.errors import ZrRayError
from zr_ray.operate.image_index import index_images, survey
from zr_ray.run import driver
from zr_ray.run.observe import say


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix; 2 when some images cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set, or its annotation file")
    parser.add_argument("--dry-run", action="store_true", help="say what is to be read, and stop")
    parser.add_argument("--batch", type=whole(1), default=64, help="images a task reads (default %(default)s)")
    parser.add_argument(
        "--deadline-s", type=number(1), default=600.0, help="longest wait for the next batch (default %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        found = survey(args.data)
        say(found.line())
        if args.dry_run:
            return 0
        if found.wanted:
            driver.connect("zr_ray")
        unusable = index_images(found, say, args.batch, args.deadline_s)
    except ZrRayError as error:
        print(f"index: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("index: stopped; what was read is kept, the same command goes on", file=sys.stderr)
        return 1
    for line in unusable:
        print(f"cannot be used: {line}", file=sys.stderr)
    say(f"{found.index.file}: {len(found.index.rows)} images, {len(unusable)} records cannot be used")
    return 2 if unusable else 0


if __name__ == "__main__":
    sys.exit(main())
