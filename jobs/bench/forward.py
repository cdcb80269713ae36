"""What the shortcuts of `models/shortcuts.py` give a judge's forward, and what a small batch costs beside a large one.

    python jobs/bench/forward.py [--judge student] [--rounds 60]

Two students of the same weights in one process, one with the modules as transformers has them, take turns on the same
images; seconds are the thread's processor time, so a machine that others use stays comparable. Prints the median per
image, the median of the ratios turn by turn with its quartiles, and the share of the rate of 64 images.
Left out on purpose: the service around it; `jobs/bench/reward.py` measures that.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers
from zr_ray.config.arguments import whole
from zr_ray.models import judge as judges
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.student import Student

WORDS = ("small red circle", "blue square", "large green star", "yellow square", "purple circle", "small white star")
SIZES = (64, 16, 4, 1)
"""Images of a forward."""


def plain(folder: Path) -> Student:
    """A student with the modules as they come."""
    taken, judges.take_shortcuts = judges.take_shortcuts, lambda model: None
    try:
        return Student(folder)
    finally:
        judges.take_shortcuts = taken


def seconds(student: Student, images: torch.Tensor, prompts: list[str], gradient: bool) -> float:
    """Processor time of one forward, or forward and backward to the pixels."""
    pixels = (images.float() / 255).requires_grad_(gradient)
    start = time.thread_time()
    with torch.set_grad_enabled(gradient):
        mu = student(pixels, prompts).mu
    if gradient:
        mu.mean(1).sum().backward()
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="student", help="builtin, student, or a Hugging Face folder")
    parser.add_argument("--rounds", type=whole(4), default=60, help="turns with one image; fewer with more images")
    parser.add_argument("--pixels", type=whole(8), default=64, help="side of the images")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = judge_folder(args.judge)
    before, after = plain(folder), Student(folder)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SIZES[0], 3, args.pixels, args.pixels), generator=generator, dtype=torch.uint8)
    prompts = [f"a {WORDS[i % len(WORDS)]}" for i in range(SIZES[0])]
    rows = []
    print("| what | images | as it comes, ms an image | ours | ratio (quartiles) | rate / rate of 64 |")
    print("|---|---|---|---|---|---|")
    for gradient in (False, True):
        of_64 = 0.0
        for size in SIZES:
            each = []
            for turn in range(max(8, round(args.rounds / size**0.5)) + 2):
                pair = [seconds(s, images[:size], prompts[:size], gradient) / size for s in (before, after)]
                if turn >= 2:  # the first ones warm up
                    each.append(pair)
            old, new = np.median(each, axis=0) * 1000
            low, ratio, high = np.quantile([a / b for a, b in each], (0.25, 0.5, 0.75))
            of_64 = of_64 or new
            what = "forward and backward" if gradient else "forward"
            print(
                f"| {what} | {size} | {old:.2f} | {new:.2f} | {ratio:.2f} ({low:.2f}-{high:.2f}) | {of_64 / new:.2f} |",
                flush=True,
            )
            rows.append(
                {"gradient": gradient, "images": size, "old_ms": old, "new_ms": new, "ratio": [low, ratio, high]}
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
