"""Write annotated data of generated images from the pools: what teachers learn from and students are distilled on.

    python jobs/data/make_image_pool.py train dev test
    python jobs/data/make_pool_annotations.py --out G --train-groups 700 --test-groups 128 --edits 0.5
    python jobs/data/mix_annotations.py --out MIX rendered=W generated=G

Training prompts are never held out, test and dev prompts always are. Annotators are SIMULATED on top of the verifier's
scores. `--edits` asks some groups again under an edited prompt (alignment only).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import zr_ray  # noqa: F401  (torchvision shim before diffusers)
from zr_ray.builtin.named_pools import POOLS, named_pool
from zr_ray.errors import ZrRayError
from zr_ray.world.image_pool import load_pool
from zr_ray.world.pool_annotations import Share, write_pool_annotations


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if it is not there")
    parser.add_argument("--train-pool", choices=POOLS, default="train", help="of training images (default %(default)s)")
    parser.add_argument("--train-groups", type=int, default=700, help="training prompts (default %(default)s)")
    parser.add_argument(
        "--test-groups", type=int, default=0, help="held-out prompts of pool test (default %(default)s)"
    )
    parser.add_argument("--dev-groups", type=int, default=0, help="held-out prompts of pool dev (default %(default)s)")
    parser.add_argument("--candidates", type=int, default=4, help="images per prompt (default %(default)s)")
    parser.add_argument("--edits", type=float, default=0.0, help="edited prompts per training prompt (default 0)")
    parser.add_argument("--half", type=int, choices=(0, 1), default=-1, help="training prompts of this half only")
    parser.add_argument("--pool-images", type=int, default=0, help="images the training pool must hold; 0: all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the annotators (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        shares = {}
        if args.train_groups:
            pool = load_pool(named_pool(args.train_pool), at_least=args.pool_images)
            shares["train"] = Share(pool, args.train_groups, args.candidates, args.edits, args.half)
        for split, groups in (("dev", args.dev_groups), ("test", args.test_groups)):
            if groups:
                shares[split] = Share(load_pool(named_pool(split)), groups, args.candidates)
        records = write_pool_annotations(args.out, shares, seed=args.seed)
    except (ZrRayError, OSError) as error:
        print(f"make_pool_annotations: {error}", file=sys.stderr)
        return 1
    print(f"wrote {records} records to {args.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
