"""Three figures of the GDSO step, measured in one run on this machine: against TRL, against its own parts, and its
memory.

    python jobs/bench/gdso.py                       (needs the extra `bench`: pip install -e '.[bench]')
    python jobs/bench/gdso.py --pairs 24 --group-size 8 --rubric-words 150 --image-pixels 128 --max-model-len 512

(a) samples per second of the whole step against TRL's GRPOTrainer: same judge, prompts, group size, completion limit,
cores (b) step wall time against a bare vLLM generate plus a bare forward+backward of the same tokens (c) peak memory of
the whole job (proportional set size of all its processes)
Every part runs in processes of its own, one after another. Left out on purpose: quality; `jobs/gdso.py` reports that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers
from zr_ray.config.arguments import whole

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().with_name("gdso_parts.py")
RUBRIC = ("small", "red", "circle", "above", "large", "blue", "square", "green", "star", "yellow")
"""Words that are a token each in the built-in judge."""


def main() -> int:
    """Run all parts and print the three figures; exit code 0 if every part ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=whole(1), default=48, help="pairs per step; 2 sides x group size samples each")
    parser.add_argument("--group-size", type=whole(2), default=4)
    parser.add_argument("--max-new-tokens", type=whole(2), default=32)
    parser.add_argument(
        "--rubric-words", type=whole(0), default=0, help="further tokens in every question, a word each"
    )
    parser.add_argument("--image-pixels", type=whole(0), default=0, help="side of the images; 0: the world's 64")
    parser.add_argument("--max-model-len", type=whole(32), default=256, help="rollout.max_model_len, of all engines")
    parser.add_argument("--block-size", type=whole(0), default=0, help="rollout.block_size of the job; 0: vLLM's own")
    parser.add_argument(
        "--max-staleness", type=whole(0), default=0, help="gdso.max_staleness of the job; 0: exactly on-policy"
    )
    parser.add_argument("--aim", type=float, default=2.0, help="wanted ratio to TRL (default %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=12, help="timed steps of each trainer, after 2 warm-up steps")
    parser.add_argument("--threads", type=whole(1), default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON here as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, Path(folder))
    print(report(args, figures))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(args, folder: Path) -> dict:
    """Run the job and the three bare parts; seconds, samples per second, GiB."""
    judge, data = question_folder(folder, args.rubric_words, args.image_pixels), data_folder(folder, args.image_pixels)
    print("1/4 the GDSO job", flush=True)
    command = [
        sys.executable,
        ROOT / "jobs" / "gdso.py",
        f"gdso.steps={args.steps + 2}",
        f"gdso.pairs_per_step={args.pairs}",
        f"gdso.group_size={args.group_size}",
        f"rollout.max_new_tokens={args.max_new_tokens}",
        "rollout.max_num_seqs=512",
        "evaluation.every_steps=0",
        "evaluation.bootstrap_resamples=20",
        f"checkpoint.every_steps={args.steps + 2}",
        f"judge.path={judge}",
        f"data.path={data}",
        f"run.root={folder}",
        "run.name=gdso",
        "gdso.beta_kl=0",
        f"gdso.max_staleness={args.max_staleness}",
        f"rollout.workers={args.threads}",
        "rollout.threads=1",
        f"rollout.cpus={1 / args.threads}",
        f"learner.threads={args.threads}",
        "learner.warmup_steps=1",
        "learner.lr=1e-6",
        f"rollout.max_model_len={args.max_model_len}",
        *([f"rollout.block_size={args.block_size}"] if args.block_size else []),
        "learner.freeze=[model.visual]",
    ]
    peak, kinds = run(command, os.environ | {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"})
    lines = [json.loads(line) for line in (folder / "gdso" / "metrics.jsonl").read_text().splitlines()][2:]
    phases = {n: statistics.median(line[f"time/{n}_s"] for line in lines) for n in ("step", "rollout", "train", "push")}
    figures = {
        "phases_s": phases,
        "job_steps_s": [line["time/step_s"] for line in lines],
        "peak_gib": peak,
        "peak_gib_of": kinds,
        "tokens_per_sample": lines[0]["rollout/tokens_per_sample"],
    }
    for n, (part, name) in enumerate(
        (("generate", "bare vLLM generate"), ("train", "bare forward and backward"), ("trl", "TRL GRPOTrainer")),
        start=2,
    ):
        print(f"{n}/4 {name}", flush=True)
        extra = ["--data", data, "--judge", judge, "--rollouts", folder / "rollouts.json"]
        own = [
            f"--{k}={v}"
            for k, v in (
                ("pairs", args.pairs),
                ("group-size", args.group_size),
                ("max-new-tokens", args.max_new_tokens),
                ("steps", args.steps),
                ("threads", args.threads),
                ("max-model-len", args.max_model_len),
            )
        ]
        figures[part] = run_part([sys.executable, PARTS, part, *own, *extra], args.threads)
    return figures


def question_folder(folder: Path, words: int, side: int) -> Path:
    """The built-in judge, its questions longer by so many words of a rubric that it does not understand, and seeing
    images of `side` pixels (0: its own 64) as they are: only speed is asked for."""
    from zr_ray.models.judge_text import judge_folder

    judge = folder / "judge"
    shutil.copytree(judge_folder("builtin"), judge)
    form = json.loads((judge / "scoring_format.json").read_text())
    rubric = " ".join(RUBRIC[i % len(RUBRIC)] for i in range(words))
    form["questions"] = {d: f"{rubric} {question}".strip() for d, question in form["questions"].items()}
    (judge / "scoring_format.json").write_text(json.dumps(form))
    if side:
        larger_images(judge, side)
    return judge


def larger_images(judge: Path, side: int) -> None:
    """Let the image processor of a judge folder keep images of `side` pixels, where it would scale them down."""
    for file in judge.glob("*processor_config.json"):
        tree = json.loads(file.read_text())
        for part in (tree, *(value for value in tree.values() if isinstance(value, dict))):
            if isinstance(part.get("size"), dict) and "longest_edge" in part["size"]:
                part["size"]["longest_edge"] = max(part["size"]["longest_edge"], side * side)
            if "max_pixels" in part:
                part["max_pixels"] = max(part["max_pixels"], side * side)
        file.write_text(json.dumps(tree))


def data_folder(folder: Path, side: int) -> Path:
    """The simulated world, its images scaled to `side` pixels (0: as they are)."""
    from PIL import Image

    from zr_ray.world.build import write_world

    data = folder / "data"
    write_world(data, train_groups=200, test_groups=2, seed=1)
    for file in data.rglob("*.png") if side else ():
        with Image.open(file) as image:
            scaled = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        scaled.save(file)
    return data


def report(args, figures: dict) -> str:
    """The three figures as text."""
    samples = args.pairs * 2 * args.group_size
    met = lambda holds: "met" if holds else "not met"
    step, trl = statistics.median(figures["job_steps_s"]), statistics.median(figures["trl"]["steps_s"])
    bare = statistics.median(figures["generate"]["seconds"]) + statistics.median(figures["train"]["seconds"])
    spread = lambda values: f"{min(values):.2f}-{max(values):.2f}"
    return "\n".join(
        [
            (
                f"{samples} samples a step, {figures['tokens_per_sample']:.1f} tokens each, {args.threads} threads,"
                f" {args.steps} timed steps; medians (min-max)"
            ),
            (
                f"(a) zr_ray GDSO step {step:.2f} s ({spread(figures['job_steps_s'])}): {samples / step:.0f} samples/s;"
                f"  TRL GRPO step {trl:.2f} s ({spread(figures['trl']['steps_s'])}): {samples / trl:.0f} samples/s; "
                f" ratio {trl / step:.2f}   (aim: at least {args.aim:g}: {met(trl / step >= args.aim)})"
            ),
            (
                f"(b) step / bare parts = {step:.2f} / ({statistics.median(figures['generate']['seconds']):.2f}"
                f" generate + {statistics.median(figures['train']['seconds']):.2f} forward+backward) ="
                f" {step / bare:.2f}   (aim: at most 1.1: {met(step / bare <= 1.1)});  phases"
                f" {', '.join(f'{n} {s:.2f}' for n, s in figures['phases_s'].items() if n != 'step')} s"
            ),
            f"(c) peak memory of the job {figures['peak_gib']:.2f} GiB: "
            + ", ".join(f"{name} {gib:.2f}" for name, gib in figures["peak_gib_of"].items()),
        ]
    )


def kind_of(title: str) -> str:
    """What a process of the job is, by its title: Ray's actors are called ray::<name>."""
    for part, name in (("RolloutWorker", "engines"), ("RayTrainWorker", "learner"), ("ray::IDLE", "idle workers")):
        if part in title:
            return name
    return "driver" if "jobs/gdso.py" in title else "Ray"


def run(command, environment) -> tuple[float, dict[str, float]]:
    """Run to the end. Returns: peak proportional set size of the process and its descendants, GiB; of what kind of
    process it was. Raises CalledProcessError."""
    import psutil

    process = subprocess.Popen(
        [str(c) for c in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    peak, kinds, output = 0.0, {}, []
    reader = threading.Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()
    while process.poll() is None:
        held: dict[str, float] = {}
        for child in (
            [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            if process.poll() is None
            else []
        ):
            try:
                name, pss = kind_of(" ".join(child.cmdline())), child.memory_full_info().pss
                held[name] = held.get(name, 0.0) + pss / 2**30
            except psutil.Error:
                continue
        if sum(held.values()) > peak:
            peak, kinds = sum(held.values()), held
        time.sleep(3)
    reader.join(5)
    if process.returncode:
        print("".join(output[-30:]))
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak, dict(sorted(kinds.items(), key=lambda entry: -entry[1]))


def run_part(command, threads: int) -> dict:
    """Run one part of gdso_parts.py in a process of its own and read its RESULT line."""
    done = subprocess.run(
        [str(c) for c in command],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(done.stdout[-2000:] + done.stderr[-3000:])
    raise RuntimeError(f"part failed with exit code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
