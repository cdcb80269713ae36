"""What the service costs a diffusion actor: a training step with the served reward against the same step with the
reward in process.

    python jobs/bench/t2i.py [--algorithm flowbp] [--steps 8] [--out FILE]

Both sides have two cores. In a step of one micro-batch actor and replica overlap for a moment and take turns for the
rest, so each has two threads; with `--set actor.threads=1 reward.threads=1` each has a core of its own, and half of
both stands still most of the time. The in-process side has two threads for its step, and two for its judge. Prints
seconds a step (median, after warm-up) and of its phases, images per second and peak memory (resident set of the actor's
process, replica's beside it).
Left out on purpose: quality, which `jobs/t2i.py` reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2
"""Steps that are not timed: the first compiles."""
PHASES = ("sample", "reward", "train")
"""Of a step, as the job logs them; `reward` is waiting for it."""


def main() -> int:
    """Run both sides, one after the other, each in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="flowbp", help="t2i.algorithm (default %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps (default %(default)s)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="overrides of t2i_tiny.yaml, for both sides"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON here as well")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print("RESULT " + json.dumps(in_process(args)), flush=True)
        return 0
    figures = {"served": served(args)}
    command = [
        sys.executable,
        __file__,
        "--in-process",
        "--algorithm",
        args.algorithm,
        "--steps",
        str(args.steps),
        "--set",
        *args.set,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures["in_process"] = json.loads(said.split("RESULT ", 1)[1])
    figures["ratio"] = figures["served"]["step_s"] / figures["in_process"]["step_s"]
    for name in ("served", "in_process"):
        row = figures[name]
        phases = ", ".join(f"{phase} {row['phases_s'][phase]:.2f}" for phase in PHASES)
        rates = f"{row['images_per_s']:.1f} images/s, {row['memory_gib']:.2f} GiB"
        print(f"{name:<11} {row['step_s']:.2f} s a step ({phases}), {rates}")
    print(f"served / in process: {figures['ratio']:.2f}")
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def told(args, **more: object) -> list[str]:
    """Overrides of both sides: no looks, so that steps are all there is."""
    fixed = {
        "t2i.algorithm": args.algorithm,
        "t2i.steps": args.steps + WARM_UP,
        "actor.warmup_steps": 1,
        "prompts.held_out": 2,
        "held_out.watched": 2,
        "held_out.every_steps": 0,
        "held_out.beside": "false",
        "checkpoint.every_steps": 1000,
        "watch.action": "'off'",  # YAML reads a bare off as false
        "actor.workers": 1,
        "actor.threads": 2,
        "reward.threads": 2,
    }
    return [f"{key}={value}" for key, value in (fixed | more).items()] + args.set


def served(args) -> dict:
    """The job, with a service of its own, read from what it logged."""
    with tempfile.TemporaryDirectory() as root:
        config = ["--config", "jobs/configs/t2i_tiny.yaml", *told(args, **{"run.root": root, "run.name": "bench"})]
        subprocess.run([sys.executable, "jobs/t2i.py", *config], cwd=ROOT, check=True, stdout=sys.stderr)
        lines = [json.loads(line) for line in (Path(root) / "bench" / "metrics.jsonl").read_text().splitlines()]
    return _figures(lines)


def in_process(args) -> dict:
    """The same steps with the student in the actor's own process, and two threads."""
    return _figures(list(steps_in_process(args)))


def steps_in_process(args) -> Iterator[dict[str, float]]:
    """Metrics of each step, with its seconds as a journal logs them; what comes before the first is part of the
    first."""
    import torch

    from zr_ray.config.loader import load_config
    from zr_ray.config.t2i import T2iConfig
    from zr_ray.loops.launch_t2i import T2iTask, task_prompts
    from zr_ray.loops.t2i import ALGORITHMS, learning_rate, step_prompts
    from zr_ray.models.generators.load import generator_folder
    from zr_ray.models.judge_text import judge_folder
    from zr_ray.run.observe import Timer
    from zr_ray.workers.generator import GeneratorWorker
    from zr_ray.workers.local_judge import LocalJudge

    config = load_config(T2iConfig, ROOT / "jobs/configs/t2i_tiny.yaml", told(args))
    training, held_out = task_prompts(config)
    task = T2iTask(config, Path("."), generator_folder(config.generator.path), training, held_out, None, time.time())
    worker = GeneratorWorker(task.generator, config.generator, config.actor)
    torch.set_num_threads(2)
    timer, judge = Timer(), LocalJudge(config.reward, judge_folder(config.reward.judge))
    algorithm = ALGORITHMS[args.algorithm](config, worker, judge, timer)
    for step in range(config.t2i.steps):
        metrics = algorithm.step(step_prompts(task, step, 0, 1), learning_rate(step + 1, config))
        yield metrics | timer.take()


def _figures(steps: list[dict[str, float]]) -> dict:
    """Medians of what was logged of each step."""
    seconds, timed, last = [line["time/step_s"] for line in steps], steps[WARM_UP:], steps[-1]
    step_s = statistics.median(seconds[WARM_UP:])
    phases_s = {phase: statistics.median(line[f"time/{phase}_s"] for line in timed) for phase in PHASES}
    return {
        "step_s": step_s,
        "phases_s": phases_s,
        "images_per_s": last["reward/images"] / step_s,
        "memory_gib": last["actor/memory_gib"],
        "steps_s": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
