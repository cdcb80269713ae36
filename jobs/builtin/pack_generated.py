"""Pack a part of the image pools into the Parquet file that ships: the generated half of the default data.

python jobs/data/make_image_pool.py train test
python jobs/builtin/pack_generated.py --train-groups 240 --test-groups 100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import zr_ray  # noqa: F401  (torchvision shim before diffusers)
from zr_ray.builtin.named_pools import named_pool
from zr_ray.errors import ZrRayError
from zr_ray.world.image_pool import ImagePool, load_pool
from zr_ray.world.packed_pool import GENERATED, pack_pool


def chosen(pool: ImagePool, groups: int, candidates: int, seed: int) -> list[int]:
    """Images of `groups` random prompts that have at least `candidates` of them, as many each."""
    rng = np.random.default_rng((seed, 0x9AC))
    members = [np.flatnonzero(pool.prompt == p) for p in rng.permutation(len(pool.prompts))]
    usable = [m for m in members if len(m) >= candidates][:groups]
    return [int(i) for m in usable for i in sorted(rng.permutation(m)[:candidates])]


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GENERATED, help="file to write (default: the shipped one)")
    parser.add_argument("--train-groups", type=int, default=240, help="known prompts (default %(default)s)")
    parser.add_argument("--test-groups", type=int, default=100, help="held-out prompts (default %(default)s)")
    parser.add_argument("--candidates", type=int, default=4, help="images per prompt (default %(default)s)")
    parser.add_argument("--pool-images", type=int, default=0, help="images that pool train must hold; 0: all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        train, test = load_pool(named_pool("train"), at_least=args.pool_images), load_pool(named_pool("test"))
        parts = {"train": (train, args.train_groups), "test": (test, args.test_groups)}
        pack_pool(args.out, {k: (pool, chosen(pool, n, args.candidates, args.seed)) for k, (pool, n) in parts.items()})
    except (ZrRayError, OSError) as error:
        print(f"pack_generated: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
