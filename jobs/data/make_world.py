"""Write the built-in rubric world (SIMULATED images, scores and reasoning) in the on-disk format of
`zr_ray/data/annotations.py`.

python jobs/data/make_world.py --out DIR --train-groups 500 --test-groups 250 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from zr_ray.config.arguments import seed, whole
from zr_ray.data.annotations import read_annotations
from zr_ray.errors import ZrRayError
from zr_ray.world.build import write_world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if it is not there")
    parser.add_argument(
        "--train-groups", type=whole(0), default=500, help="prompts with training labels (default %(default)s)"
    )
    parser.add_argument(
        "--dev-groups",
        type=whole(0),
        default=0,
        help="prompts with five annotators' scores for tuning (default %(default)s)",
    )
    parser.add_argument(
        "--test-groups", type=whole(0), default=250, help="prompts with five annotators' scores (default %(default)s)"
    )
    parser.add_argument("--candidates", type=whole(2), default=4, help="images per prompt (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="same seed, same bytes (default %(default)s)")
    args = parser.parse_args()
    try:
        started = time.perf_counter()
        images = write_world(
            args.out,
            train_groups=args.train_groups,
            dev_groups=args.dev_groups,
            test_groups=args.test_groups,
            candidates=args.candidates,
            seed=args.seed,
        )
        seconds = time.perf_counter() - started
        records = sum(1 for _ in read_annotations(args.out))
    except ZrRayError as error:
        print(f"make_world: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {images} simulated images and {records} checked records to {args.out.absolute()}:"
        f" {images / seconds:.0f} images/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
