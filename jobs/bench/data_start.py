"""Seconds from a run's first look at its data to its first questions, and the driver's memory, for data sets of several
sizes, before and after they are indexed.

    python jobs/bench/data_start.py --records 1000 100000 --distinct 2000 --side 1024

Writes sets of JPEG images (so many distinct ones, the rest hard links) and reads each in a process of its own: as a
driver does (records, what is known of the images, every prompt measured against the judge), then as a learner rank gets
it (the task pickled and back, the schedule, the requests of step 1). Prints two lines a set. Ray, engines and weights
take the same time whatever the data, and are left out; with --job they are not: `jobs/gdso.py` itself on every indexed
set, from its start to the end of step 1, and its driver's memory, seen from outside; then it is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.config.arguments import whole

INDEX_JOB = Path(__file__).parents[1] / "data/index.py"
GDSO_JOB = Path(__file__).parents[1] / "gdso.py"
STEP = [
    "gdso.steps=2",
    "gdso.pairs_per_step=2",
    "gdso.group_size=2",
    "evaluation.before=false",
    "learner.warmup_steps=0",
]
"""Of the job: a step so small that what comes before it is what is measured."""
JOB_DEADLINE_S = 600.0


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
    """Read the set as a driver and a rank do, and print what it took."""
    from zr_ray.data.image_index import INDEX_FILE
    from zr_ray.data.pairs import PairSchedule
    from zr_ray.data.run_data import load_run_data
    from zr_ray.judging.ask import pair_requests
    from zr_ray.models.item_check import JudgeItemCheck
    from zr_ray.models.judge_text import JudgeText, judge_folder

    text = JudgeText(judge_folder(judge))
    check = JudgeItemCheck(text, None, 32)
    before, start, worked = _pss_mib(), time.perf_counter(), time.process_time()
    data = load_run_data(folder, "test", check, ("realism",))
    spent, worked = time.perf_counter() - start, time.process_time() - worked
    pss = _pss_mib() - before
    start, asked_at = time.perf_counter(), time.process_time()
    task = pickle.dumps((data.pairs, data.held_out))
    pairs, _ = pickle.loads(task)
    pair_requests(text, PairSchedule(list(pairs), 48, 0).batch(0), 0, 0, range(48))
    asked, asked_cpu = time.perf_counter() - start, time.process_time() - asked_at
    counts = {"records": len(data.train) + len(data.held_out), "pairs": len(data.pairs)}
    counts["indexed"] = (folder / INDEX_FILE).is_file()
    measured = {"read_s": round(spent, 1), "read_cpu_s": round(worked, 1), "pss_mib": round(pss)}
    measured |= {"asked_s": round(asked, 1), "asked_cpu_s": round(asked_cpu, 1)}
    measured["task_mib"] = round(len(task) / 2**20, 1)
    print(json.dumps(counts | measured))


def measure_job(folder: Path, judge: str, root: Path) -> dict[str, float]:
    """Seconds from the start of a GDSO job to the end of its first step, and the largest memory of its driver until
    then. Raises RuntimeError with the job's words if it ends or takes too long before."""
    command = [sys.executable, str(GDSO_JOB), *STEP, f"data.path={folder}", f"judge.path={judge}", f"run.root={root}"]
    log, start, most = root / "job.log", time.perf_counter(), 0.0
    with open(log, "w") as output:
        job = subprocess.Popen(
            [*command, "run.name=job"], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while not (root / "job" / "metrics.jsonl").is_file():
            spent = time.perf_counter() - start
            if job.poll() is not None or spent > JOB_DEADLINE_S:
                raise RuntimeError(f"no step after {spent:.0f} s; the job said: {log.read_text()[-2000:]}")
            most = max(most, _pss_mib(job.pid))
            time.sleep(0.1)
        spent = time.perf_counter() - start
    finally:
        job.send_signal(signal.SIGTERM)  # it stops at a step, and takes its engines with it
        job.wait(JOB_DEADLINE_S)
    return {"job_s": round(spent, 1), "job_pss_mib": round(most)}


def _pss_mib(pid: int | str = "self") -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=whole(8), nargs="+", default=[1000, 100000])
    parser.add_argument("--distinct", type=whole(1), default=2000, help="different images; the rest are hard links")
    parser.add_argument("--side", type=whole(8), default=1024, help="pixels")
    parser.add_argument("--judge", default="builtin")
    parser.add_argument("--job", action="store_true", help="also run jobs/gdso.py on every set, to its first step")
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
            for indexed in (False, True):
                if indexed:
                    start = time.perf_counter()
                    subprocess.run([sys.executable, INDEX_JOB, folder], capture_output=True, check=True)
                    print(f"indexed in {time.perf_counter() - start:.0f} s", flush=True)
                print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)
            if args.job:
                with tempfile.TemporaryDirectory() as runs:
                    print(json.dumps({"records": records} | measure_job(folder, args.judge, Path(runs))), flush=True)


if __name__ == "__main__":
    main()
