"""What computing image and prompt once per group saves the learner: forward and backward of packed groups against a
sequence a sample, as trainers that know no groups compute it.

    python jobs/bench/learner.py [--rounds 5]

One model in one process and one thread; both ways take turns on the same tokens (outputs of ten random tokens); seconds
are the thread's processor time, so a machine that others use stays comparable. The vision tower is frozen.
Left out on purpose: DeepSpeed and the objective, which cost both ways the same; the whole step is `jobs/bench/gdso.py`.
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
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.packing import Row

SETTINGS = ((0, 64, 4), (0, 64, 8), (150, 128, 4), (150, 128, 8))
"""(further words in the prompt, side of the image in pixels, samples a group)."""


def groups(text, words: int, side: int, samples: int, count: int, tokens: int) -> list[Row]:
    """`count` questions with `samples` outputs of `tokens` random tokens each."""
    rng, dimensions = np.random.default_rng(0), text.rubric.dimensions
    prompt = "small red circle" + " and blue square" * (words // 3)
    rows = []
    for n in range(count):
        question = np.asarray(text.question(prompt, dimensions[n % len(dimensions)], direct=False), np.int32)
        image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        outputs = tuple(rng.integers(10, 60, tokens).astype(np.int32) for _ in range(samples))
        rows.append(Row(question, image, outputs, (tokens - 2,) * samples))
    return rows


def apart(rows: list[Row]) -> list[Row]:
    """The same samples, each with a prompt and an image of its own."""
    return [
        Row(row.question, row.image, (output,), (at,))
        for row in rows
        for output, at in zip(row.completions, row.score_indices, strict=True)
    ]


def seconds(module, packer, rows: list[Row], at_once: int) -> float:
    """Processor time of packing, forward and backward of all rows."""
    start = time.thread_time()
    for first in range(0, len(rows), at_once):
        module(packer.pack(rows[first : first + at_once])).logprobs.sum().backward()
    spent = time.thread_time() - start
    module.zero_grad()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="builtin", help="builtin, small, or a Hugging Face folder")
    parser.add_argument("--groups", type=whole(1), default=24)
    parser.add_argument("--tokens", type=whole(3), default=10, help="of an output")
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--out", type=Path, help="write the figures as JSON here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    module, text, packer = load_packed_judge(judge_folder(args.judge), torch.float32)
    for name, parameter in module.model.named_parameters():
        parameter.requires_grad_(not name.startswith("model.visual"))
    packer.image_processor.size = dict(packer.image_processor.size) | {
        "longest_edge": max(s for _, s, _ in SETTINGS) ** 2
    }
    found = []
    print("| tokens of the question with image | samples a group | packed groups, s | a sequence a sample, s | ratio |")
    print("|---|---|---|---|---|")
    for words, side, samples in SETTINGS:
        rows = groups(text, words, side, samples, args.groups, args.tokens)
        each = []
        for turn in range(args.rounds + 1):
            pair = seconds(module, packer, rows, args.groups), seconds(module, packer, apart(rows), 2 * args.groups)
            if turn:  # the first one warms up
                each.append(pair)
        packed, alone = np.median(each, axis=0)
        ratios = [b / a for a, b in each]
        length = len(rows[0].question) - 1 + packer.image_tokens(rows[0].image)
        print(
            f"| {length} | {samples} | {packed:.3f} | {alone:.3f} |"
            f" {np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |",
            flush=True,
        )
        found.append({"tokens": length, "samples": samples, "packed_s": packed, "alone_s": alone, "ratios": ratios})
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
