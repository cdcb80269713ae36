"""Seconds until a run knows its data, and the driver's memory, for data sets of several sizes.

    python jobs/bench/data_start.py --records 1000 100000 --distinct 2000 --side 1024

Writes sets of JPEG images (so many distinct ones, the rest hard links) and reads each in a process of its own, as a
driver does: records, headers, an even sample decoded, every prompt measured against the judge. Prints one line a set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.config.arguments import whole


def write_set(folder: Path, records: int, images: list[Path]) -> Path:
    """An annotated set of `records` images in groups of four, a tenth of them held out."""
    (folder / "images").mkdir(parents=True)
    with open(folder / "annotations.jsonl", "w") as file:
        for n in range(records):
            name, group, test = f"images/{n:06d}.jpg", n // 4, (n // 4) % 10 == 0
            os.link(images[n % len(images)], folder / name)
            score = float(1 + n % 4)
            line = {
                "id": f"i{n}", "group": f"g{group}", "split": "test" if test else "train",
                "prompt": f"a photo of object {group % 5000} beside object {group // 7 % 900}", "image": name,
                "scores": {"realism": [score] if test else score},
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return folder


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """So many JPEG files of side x side pixels, noise over a gradient: about as large as photographs."""
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 200, side)[:, None, None]
    paths = []
    for n in range(count):
        coarse = np.random.default_rng(n).integers(0, 56, (side // 4, side // 4, 3)).repeat(4, 0).repeat(4, 1)
        pixels = (ramp + coarse).astype(np.uint8)
        paths.append(folder / f"{n}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def measure(folder: Path, judge: str) -> None:
    """Read the set as a driver does, and print what it took."""
    from zr_ray.data.run_data import load_run_data
    from zr_ray.models.item_check import JudgeItemCheck
    from zr_ray.models.judge_text import JudgeText, judge_folder

    text = JudgeText(judge_folder(judge))
    check = JudgeItemCheck(text, None, 32)
    before, start = _pss_mib(), time.perf_counter()
    data = load_run_data(folder, "test", check, ("realism",))
    spent = time.perf_counter() - start
    counts = {"records": len(data.train) + len(data.held_out), "pairs": len(data.pairs)}
    print(json.dumps(counts | {"seconds": round(spent, 1), "pss_mib": round(_pss_mib() - before)}))


def _pss_mib() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=whole(8), nargs="+", default=[1000, 100000])
    parser.add_argument("--distinct", type=whole(1), default=2000, help="different images; the rest are hard links")
    parser.add_argument("--side", type=whole(8), default=1024, help="pixels")
    parser.add_argument("--judge", default="builtin")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.judge)
        return
    with tempfile.TemporaryDirectory() as root:
        images = write_images(Path(root) / "distinct", args.distinct, args.side)
        for records in args.records:
            folder = write_set(Path(root) / str(records), records, images)
            command = [sys.executable, __file__, "--measure", str(folder), "--judge", args.judge]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
