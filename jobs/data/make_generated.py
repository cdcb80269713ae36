"""Write annotated data of origin "generated": images by a generator, scores measured by the verifier, SIMULATED
annotators on top.

    python jobs/data/make_generated.py --out DIR --train-groups 250 --test-groups 100 --seed 0

Training prompts are those that the built-in generator was trained on, dev and test prompts of two objects are held out
from it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zr_ray.builtin.generator_scenes import evaluation_prompts, training_prompts
from zr_ray.builtin.tiny_generator import ASSET, generate, load_generator
from zr_ray.config.arguments import seed, whole
from zr_ray.data.annotations import read_annotations
from zr_ray.errors import ZrRayError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.generated import Setting, write_generated


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if it is not there")
    parser.add_argument(
        "--generator", type=Path, default=ASSET, help="ZImagePipeline folder (default: the shipped one)"
    )
    parser.add_argument(
        "--train-groups", type=whole(0), default=250, help="prompts with training labels (default %(default)s)"
    )
    parser.add_argument(
        "--dev-groups",
        type=whole(0),
        default=0,
        help="prompts with five annotators' scores for tuning (default %(default)s)",
    )
    parser.add_argument(
        "--test-groups", type=whole(0), default=100, help="prompts with five annotators' scores (default %(default)s)"
    )
    parser.add_argument("--candidates", type=whole(2), default=4, help="images per prompt (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of prompts, noise and annotators (default %(default)s)")
    parser.add_argument(
        "--threads", type=whole(0), default=0, help="CPU threads; 0 leaves it to torch (default %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        started = time.perf_counter()
        pipeline = load_generator(args.generator)

        def sample(prompts: Sequence[str], setting: Setting, seed: int) -> np.ndarray:
            return generate(
                pipeline, list(prompts), seed=seed, steps=setting.steps, guidance_scale=setting.guidance_scale
            ).numpy()

        prompts = {
            "train": training_prompts(args.train_groups, args.seed),
            "dev": evaluation_prompts(args.dev_groups, args.seed + 1000),
            "test": evaluation_prompts(args.test_groups, args.seed + 2000),
        }
        prompts = {split: texts for split, texts in prompts.items() if texts}
        images = write_generated(
            args.out,
            prompts,
            sample,
            candidates=args.candidates,
            seed=args.seed,
            note={"generator": str(args.generator)},
        )
        seconds = time.perf_counter() - started
        items = list(read_annotations(args.out))
    except (ZrRayError, OSError) as error:
        print(f"make_generated: {error}", file=sys.stderr)
        return 1
    measured = "  ".join(f"{d} {np.mean([item.truth[d] for item in items]):.2f}" for d in DIMENSIONS)
    print(
        f"wrote {images} generated images and {len(items)} checked records to {args.out.absolute()}:"
        f" {images / seconds:.0f} images/s"
    )
    print(f"measured scores, mean: {measured}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
