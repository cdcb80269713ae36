"""Fits a judge directly to the verifier's scores of generated images: the upper row of the student table, and a judge
to start from.

    python jobs/data/make_image_pool.py dev train
    python jobs/builtin/pretrain_judge.py --config jobs/configs/pretrain_judge_patch4.yaml --out BASE python
    jobs/builtin/fit_judge.py --config jobs/configs/fit_judge.yaml --start BASE/judge --checkpoint BASE/perception.pt
    --out FOLDER

`--start` is a judge folder; with `--checkpoint` tower, language model and perception heads come from a pre-training
checkpoint instead. FOLDER gets metrics.jsonl, checkpoint.pt (with --resume the run goes on from it) and judge/,
replaced whole at every measurement.
Left out on purpose: Ray; this is one process on one core, run once per change of world or generator.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.builtin.judge_fitting import FitConfig, JudgeFitting
from zr_ray.builtin.named_pools import named_pool
from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.errors import ZrRayError
from zr_ray.world.image_pool import load_pool


def export(run: JudgeFitting, folder: Path) -> None:
    """Write the averaged weights as a complete judge folder beside `folder`, then put it in its place."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run.folder, fresh)
    run.averaged.save_pretrained(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def train(run: JudgeFitting, out: Path, copies: list[Path], resume: bool) -> None:
    """Until the minutes are over; measures, checkpoints and exports on the way."""
    config, dev = run.config, load_pool(named_pool("dev"))
    started, watched, losses = time.monotonic() - run.trained_s, run.trained_s, []
    with open(out / "metrics.jsonl", "a" if resume else "w") as journal:
        while True:
            elapsed = time.monotonic() - started
            over = elapsed >= 60 * config.minutes
            if over or elapsed - watched >= 60 * config.watch_minutes:
                run.trained_s = elapsed
                images = run.refresh_pools()
                mean = {name: sum(x[name] for x in losses) / len(losses) for name in losses[0]} if losses else {}
                line = {"minutes": elapsed / 60, "steps": run.steps, "images": images, **mean, **run.watch(dev)}
                journal.write(json.dumps(line) + "\n")
                journal.flush()
                print(
                    "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()),
                    flush=True,
                )
                run.save(out / "checkpoint.pt")
                for folder in (out / "judge", *copies):
                    export(run, folder)
                watched, losses = time.monotonic() - started, []
                if over:
                    return
            losses.append(run.step(min(1.0, elapsed / 60 / config.minutes)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=schema_help(FitConfig)
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "fit_judge.yaml")
    parser.add_argument("--start", type=Path, required=True, help="judge folder: architecture, tokenizer, weights")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="weights from here: perception.pt of a pre-training, or checkpoint.pt of another fit",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, metrics and the judge")
    parser.add_argument(
        "--copy", type=Path, action="append", default=[], help="put the judge here too, whenever it is written"
    )
    parser.add_argument("--resume", action="store_true", help="go on from FOLDER/checkpoint.pt")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. minutes=20")
    arguments = parser.parse_args()
    try:
        config = load_config(FitConfig, arguments.config, arguments.overrides)
        print(dump_yaml(config), flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        run = JudgeFitting(config, arguments.start)
        if arguments.resume:
            run.load(arguments.out / "checkpoint.pt")
        elif arguments.checkpoint:
            run.start_from(arguments.checkpoint)
        train(run, arguments.out, arguments.copy, arguments.resume)
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = arguments.out / "judge"
    print(f"judge in {folder} after {run.trained_s / 60:.1f} min; use it with judge.path={folder}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main())
