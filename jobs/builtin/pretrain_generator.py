"""Pre-train the built-in text-to-image generator by flow matching on SIMULATED world scenes.

    python jobs/builtin/pretrain_generator.py --config jobs/configs/generator_tiny.yaml --minutes 5 --output
    runs/generator

Call it again with the same --output to continue after an end or a kill. In --output: generator/ (averaged weights, a
folder for ZImagePipeline.from_pretrained), checkpoint.pt, grids/step_*.png, metrics.jsonl, tensorboard/, config.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean

import torch

from zr_ray.builtin.generator_pretraining import GeneratorPretraining
from zr_ray.builtin.step_clock import StepClock
from zr_ray.builtin.tiny_generator import generate
from zr_ray.config.arguments import number, whole
from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.config.pretrain_generator import PretrainGeneratorConfig
from zr_ray.errors import ZrRayError
from zr_ray.report.image_grid import save_enlarged, tiled

GRID_PROMPTS = [
    "small red circle",
    "big blue square",
    "small yellow triangle",
    "big white cross",
    "big green circle left of small red square",
    "small purple triangle left of big yellow circle",
    "big white square right of big blue cross",
    "small green cross right of small purple square",
    "small red circle on big blue square",
    "small yellow cross on big purple circle",
    "big white triangle on big green square",
    "small blue square on small red cross",
    "big yellow square under small green triangle",
    "small purple circle under big white cross",
    "big red cross under small yellow square",
    "big blue triangle right of small white circle",
]


def parse(argv: list[str] | None) -> argparse.Namespace:
    keys = "configuration keys:\n" + schema_help(PretrainGeneratorConfig)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=keys, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="YAML file; without it the defaults below")
    parser.add_argument(
        "--minutes",
        type=number(0, above=True),
        default=5,
        help="spent in steps, resumed parts included (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/generator"), help="folder of this run (default %(default)s)"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default %(default)s)"
    )
    parser.add_argument(
        "--threads", type=whole(0), default=0, help="CPU threads; 0 leaves it to torch (default %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example optimizer.batch=32")
    return parser.parse_args(argv)


def replace_folder(write, folder: Path) -> None:
    """Call `write(temporary)` and put its folder in the place of `folder`."""
    temporary, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write(temporary)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop lines of steps that a killed attempt did but did not check-point."""
    if path.exists():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        path.write_text("".join(line + "\n" for line in lines))


def train(run: GeneratorPretraining, minutes: float, output: Path) -> None:
    """Steps until `minutes` of training have passed; writes metrics, grids, checkpoints and the pipeline folder on the
    way."""
    from torch.utils.tensorboard import SummaryWriter

    cadence, limit_s = run.config.cadence, minutes * 60
    keep_metrics_until(output / "metrics.jsonl", run.step_count)
    board = SummaryWriter(str(output / "tensorboard"), purge_step=run.step_count + 1)
    window: list[dict[str, float]] = []
    clock = StepClock()
    saved_s = logged_s = run.trained_s
    grid_due_s = (run.trained_s // (cadence.grid_min * 60) + 1) * cadence.grid_min * 60

    def log(values: dict[str, float]) -> None:
        with open(output / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": run.step_count, "trained_s": round(run.trained_s, 1)} | values) + "\n")
        for name, value in values.items():
            board.add_scalar(name, value, run.step_count)

    def save() -> None:
        run.save(output / "checkpoint.pt")
        replace_folder(run.averaged.save_pretrained, output / "generator")

    def show() -> None:
        log(held_out := run.held_out())
        images = generate(
            run.averaged, GRID_PROMPTS, seed=0, steps=cadence.grid_steps, guidance_scale=cadence.grid_guidance
        )
        save_enlarged(tiled(images.numpy(), columns=8), output / "grids" / f"step_{run.step_count:06d}.png")
        board.add_images("grid", images, run.step_count, dataformats="NHWC")
        print(
            "held out  "
            + "  ".join(f"{name.removeprefix('held_out/')} {value:.4f}" for name, value in held_out.items()),
            flush=True,
        )

    while run.trained_s < limit_s:
        started = time.monotonic()
        window.append(run.step(run.trained_s / limit_s))
        run.trained_s += clock.counted(time.monotonic() - started)
        if len(window) == cadence.metrics_steps:
            values = {name: fmean(step[name] for step in window) for name in window[0]}
            if run.trained_s > logged_s:
                values["time/images_per_s"] = len(window) * run.config.optimizer.batch / (run.trained_s - logged_s)
            logged_s = run.trained_s
            log(values)
            pace = f"  {values['time/images_per_s']:.0f} images/s" if "time/images_per_s" in values else ""
            print(
                f"step {run.step_count}  {run.trained_s / 60:.1f}/{minutes:g} min  velocity"
                f" {values['loss/velocity']:.4f}  object map {values['loss/object_map']:.4f}{pace}",
                flush=True,
            )
            window = []
        if run.trained_s >= grid_due_s:
            grid_due_s += cadence.grid_min * 60
            show()
        if run.trained_s - saved_s >= cadence.checkpoint_min * 60:
            saved_s = run.trained_s
            save()
    save()
    show()
    board.close()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    args = parse(argv)
    try:
        config = load_config(PretrainGeneratorConfig, args.config, args.overrides)
        if args.threads:
            torch.set_num_threads(args.threads)
        args.output.mkdir(parents=True, exist_ok=True)
        print("fitting the codec and building the models", flush=True)
        run = GeneratorPretraining(config, args.device)
        if (args.output / "checkpoint.pt").exists():
            run.load(args.output / "checkpoint.pt")
            print(f"continuing after step {run.step_count}, {run.trained_s / 60:.1f} minutes", flush=True)
        (args.output / "config.yaml").write_text(dump_yaml(config))
        print("parameters: " + ", ".join(f"{part} {count:,}" for part, count in run.sizes().items()), flush=True)
        train(run, args.minutes, args.output)
    except ZrRayError as error:
        print(f"pretrain_generator: {error}", file=sys.stderr)
        return 1
    folder = (args.output / "generator").absolute()
    print(f"done: {run.step_count} steps, {run.trained_s / 60:.1f} minutes; generator in {folder}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
