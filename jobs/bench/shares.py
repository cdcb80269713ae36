"""Where the time of a step or a request goes: py-spy's samples, added up.

    python jobs/bench/shares.py score --images 4         what a reward replica computes for a request, in process
    python jobs/bench/shares.py learner                  pack, forward and backward of GDSO groups, in process
    python jobs/bench/shares.py t2i                      a step of `jobs/bench/t2i.py` with the reward in process
    python jobs/bench/shares.py attach --name ray::RolloutWorker --seconds 20
                                                          a worker of a run or service that is going on (same machine)

Samples are of threads that run, 200 a second. Two tables: shares by the package of the innermost Python frame (time
inside a kernel belongs to who called it), and inclusive shares of functions. Attaching needs the right to trace other
processes (root, or kernel.yama.ptrace_scope=0).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from zr_ray.config.arguments import number, whole

HERE = Path(__file__).resolve()
PACKAGES = ("zr_ray", "vllm", "transformers", "diffusers", "deepspeed", "torchvision", "torch", "ray", "numpy", "PIL")
"""Folders looked for in a frame's path; a path under several belongs to the innermost of them."""
QUIET = ("wait (threading", "select (selectors", "_worker (concurrent", "poll (")
"""Innermost frames of threads that wait, although py-spy takes them for running."""


def package_of(frame: str) -> str:
    """Package of a frame `function (path:line)`; "other" for the standard library and unknown ones."""
    folders = frame.rpartition("(")[2].split("/")[:-1]
    return next((folder for folder in reversed(folders) if folder in PACKAGES), "other")


def added_up(raw: str) -> tuple[int, Counter[str], Counter[str]]:
    """(samples, samples by package of the innermost frame, samples by function anywhere in the stack) of py-spy's raw
    form: a line a stack, outermost frame first, frames apart by `;`, the count behind the last space."""
    total, packages, functions = 0, Counter[str](), Counter[str]()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [f for f in stack.split(";") if not f.startswith("process ")]
        if not frames or any(quiet in frames[-1] for quiet in QUIET):
            continue
        total += int(count)
        packages[package_of(frames[-1])] += int(count)
        functions.update(dict.fromkeys({_short(f) for f in frames}, int(count)))
    return total, packages, functions


def _short(frame: str) -> str:
    """`forward (transformers/models/x.py:12)` -> `x.py forward`, without the line."""
    name, _, path = frame.partition(" (")
    return f"{Path(path.rstrip(')').rpartition(':')[0]).name} {name}"


def report(raw: str, rows: int) -> str:
    """Both tables as Markdown."""
    total, packages, functions = added_up(raw)
    if not total:
        return "no samples: the process did nothing while it was looked at"
    lines = [f"{total} samples", "", "| package of the innermost Python frame | share |", "|---|---|"]
    lines += [f"| {name} | {count / total:.0%} |" for name, count in packages.most_common()]
    lines += ["", "| function, with all that it calls | share |", "|---|---|"]
    shown = [(name, count) for name, count in functions.most_common() if count < 0.98 * total][:rows]
    return "\n".join([*lines, *(f"| `{name}` | {count / total:.0%} |" for name, count in shown)])


# ---- what is profiled in process ----


def score(args) -> None:
    """Answer requests of --images images until the time is over."""
    import numpy as np
    import torch

    import zr_ray  # noqa: F401  the torchvision shim
    from zr_ray.models.judge_text import judge_folder
    from zr_ray.workers.reward import RewardWorker
    from zr_ray.workers.reward_items import RewardItem

    torch.set_num_threads(1)
    worker = RewardWorker(judge_folder(args.judge or "student"))
    rng, dimensions = np.random.default_rng(0), worker.rubric.dimensions
    images = rng.integers(0, 256, (args.images, 3, 64, 64), dtype=np.uint8)
    items = [RewardItem(image, "small red circle", dimensions) for image in images]
    _until(args, lambda: worker.answer(items))


def learner(args) -> None:
    """Pack, forward and backward of 24 groups of four outputs."""
    import torch
    from learner import groups, seconds

    from zr_ray.models.judge import load_packed_judge
    from zr_ray.models.judge_text import judge_folder

    torch.set_num_threads(1)
    module, text, packer = load_packed_judge(judge_folder(args.judge or "builtin"), torch.float32)
    for name, parameter in module.model.named_parameters():
        parameter.requires_grad_(not name.startswith("model.visual"))
    rows = groups(text, 0, 64, 4, 24, 10)
    _until(args, lambda: seconds(module, packer, rows, 24))


def t2i(args) -> None:
    """Steps of post-training the built-in generator: sample, reward, update."""
    from t2i import steps_in_process

    steps = steps_in_process(argparse.Namespace(algorithm=args.algorithm, steps=10**6, set=args.set))
    _until(args, lambda: next(steps), warm_up=2)


def _until(args, work, warm_up: int = 3) -> None:
    for _ in range(warm_up):
        work()  # what only happens once is not part of the profile
    Path(args.ready).touch()
    end = time.monotonic() + args.seconds + 5
    while time.monotonic() < end:
        work()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "learner", "t2i", "attach"))
    parser.add_argument("--seconds", type=number(0, above=True), default=15.0, help="of sampling (default %(default)s)")
    parser.add_argument("--images", type=whole(1), default=4, help="score: images of a request")
    parser.add_argument("--judge", help="score, learner: judge folder or a built-in name")
    parser.add_argument("--name", help="attach: beginning of the process title, for example ray::RolloutWorker")
    parser.add_argument("--algorithm", default="nft", help="t2i: t2i.algorithm (default %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="t2i: overrides of t2i_tiny.yaml")
    parser.add_argument("--rows", type=whole(1), default=25, help="functions shown")
    parser.add_argument("--ready", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ready:
        {"score": score, "learner": learner, "t2i": t2i}[args.what](args)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        if args.what == "attach":
            pids = _named(args.name or parser.error("attach needs --name"))
            for pid in pids:
                _record(["--pid", str(pid), "--duration", str(round(args.seconds))], samples)
                print(f"process {pid}\n{report(samples.read_text(), args.rows)}\n")
            return 0 if pids else 1
        ready = Path(folder) / "ready"
        child = subprocess.Popen([sys.executable, str(HERE), *sys.argv[1:], "--ready", str(ready)])
        try:
            while not ready.exists():
                if child.poll() is not None:
                    return child.returncode or 1
                time.sleep(0.1)
            _record(["--pid", str(child.pid), "--duration", str(round(args.seconds))], samples)
        finally:
            child.terminate()
            child.wait()
        print(report(samples.read_text(), args.rows))
    return 0


def _record(arguments: list, to: Path) -> None:
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy if spy.is_file() else shutil.which("py-spy") or "py-spy"), "record", "--rate", "200"]
    command += ["--format", "raw", "--output", str(to), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _named(title: str) -> list[int]:
    """Processes whose command line begins with `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").is_file():
            try:
                if (entry / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                    found.append(int(entry.name))
            except OSError:
                continue  # gone meanwhile
    if not found:
        print(f"no process of this machine is called {title}...", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
