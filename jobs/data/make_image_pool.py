"""Sample the pools of generated images that judges are trained and measured on, and read them with the verifier.

    python jobs/data/make_image_pool.py dev test test_guided train          # some 40,000 images, 15 minutes on two
    cores python jobs/data/make_image_pool.py train --worker 0/2 & python jobs/data/make_image_pool.py train --worker
    1/2

Pools lie under ~/.cache/zr_ray (ZR_RAY_CACHE), one folder per recipe; shards that are there are kept, so a killed run
goes on. `--worker i/n` makes every n-th shard, for several processes on one machine: one thread each is faster than two
threads in one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import zr_ray  # noqa: F401  (torchvision shim before diffusers)
from zr_ray.builtin.named_pools import POOLS, named_pool
from zr_ray.builtin.packed_sampler import PackedSampler
from zr_ray.builtin.tiny_generator import ASSET, load_generator
from zr_ray.errors import ZrRayError
from zr_ray.world.image_pool import PoolRecipe, SamplingShare, make_shard
from zr_ray.world.probes import odd_picture
from zr_ray.world.verifier.scores import parse_prompt


def worker(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    own, _, count = text.partition("/")
    if not (own.isdigit() and count.isdigit() and int(own) < int(count)):
        raise argparse.ArgumentTypeError(f"wanted i/n with i below n, got {text!r}")
    return int(own), int(count)


def odd(prompts: list[str], seeds: list[int], how: SamplingShare) -> np.ndarray:
    """Pictures that fool rewards, in place of a generator's images."""
    return np.stack([odd_picture(parse_prompt(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)])


def make(recipe: PoolRecipe, name: str, sampler: PackedSampler | None, own: int, workers: int) -> None:
    """Make the shards of one pool that are not there yet. sampler: None for pool odd."""

    def generate(prompts: list[str], seeds: list[int], how: SamplingShare) -> np.ndarray:
        return sampler(prompts, seeds, steps=how.steps, guidance_scale=how.guidance_scale)

    sample = odd if sampler is None else generate

    for index in range(own, recipe.shards, workers):
        if (recipe.folder / f"shard-{index:04d}.npz").is_file():
            continue
        started = time.perf_counter()
        make_shard(recipe, index, sample)
        size = min(recipe.shard_images, recipe.count - index * recipe.shard_images)
        pace = (time.perf_counter() - started) / size
        print(f"{name} shard {index + 1}/{recipe.shards}  {1000 * pace:.1f} ms an image", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", choices=POOLS, help="which, in this order")
    parser.add_argument(
        "--generator", type=Path, default=ASSET, help="ZImagePipeline folder (default: the shipped one)"
    )
    parser.add_argument(
        "--worker", type=worker, default=(0, 1), metavar="i/n", help="make every n-th shard, from the i-th"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile (compiling takes 40 s and halves the time an image)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        generated = any(name != "odd" for name in args.pools)
        sampler = PackedSampler(load_generator(args.generator), compiled=not args.eager) if generated else None
        for name in args.pools:
            recipe = named_pool(name, args.generator)
            make(recipe, name, None if name == "odd" else sampler, *args.worker)
            print(f"{name}: {recipe.count} images of {len(recipe.prompts)} prompts in {recipe.folder}", flush=True)
    except (ZrRayError, OSError) as error:
        print(f"make_image_pool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
