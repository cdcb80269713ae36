"""Processor time of one request to the reward service, in each process it passes through.

    python jobs/bench/request_cost.py --images 1
    python jobs/bench/request_cost.py --images 4 --ways handle tensors --record shares/

Ways: `handle` (tensors inside the cluster), `tensors` (safetensors over HTTP), `jpeg` (files over HTTP). The callers
are those of `reward.py`. With --record py-spy writes who holds each interpreter's lock, as raw stacks for
speedscope.app; figures of that run are lower.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
from pathlib import Path

import psutil
from reward import Bench
from reward_servers import APP, reward_service

from zr_ray.config.arguments import number, whole
from zr_ray.run.observe import say

WAYS = ("handle", "tensors", "jpeg")
PROCESSES = {"ProxyActor": "Serve's proxy", ":gateway": "gateway", ":student": "replica"}
"""Part of Ray's title of a process -> its name here; the titles are padded with blanks."""


def processes() -> dict[str, psutil.Process]:
    """Name -> process, of this machine's Serve, and the callers' own."""
    found = {"callers": psutil.Process()}
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::"):
            found |= {name: process for part, name in PROCESSES.items() if part in title}
    return found


def seconds(process: psutil.Process) -> float:
    """Processor time so far."""
    times = process.cpu_times()
    return times.user + times.system


def record(process: psutil.Process, file: Path, for_s: float) -> subprocess.Popen:
    """py-spy beside a process."""
    command = [
        "py-spy",
        "record",
        "-p",
        str(process.pid),
        "-d",
        f"{for_s:.0f}",
        "--gil",
        "-r",
        "400",
        "-f",
        "raw",
        "-o",
        str(file),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cost(bench: Bench, way: str, url: str, images: int, callers: int, folder: Path | None) -> None:
    """Print a row: calls a second, then processor milliseconds of a call in each process."""
    from zr_ray.serving.client import RewardClient

    target = APP if way == "handle" else url
    with RewardClient(target, items_per_request=64, max_in_flight=callers) as client:
        call = bench._jpeg(url) if way == "jpeg" else bench._scored(client.score_async)
        asyncio.run(bench._drive(call, callers, images))  # warm
        found = processes()
        before = {name: seconds(process) for name, process in found.items()}
        spies = [
            record(process, folder / f"{way}-{images}-{name.split()[-1]}.raw", bench.seconds)
            for name, process in (found.items() if folder else ())
        ]
        start = os.times().elapsed
        calls, latencies, spent = asyncio.run(bench._drive(call, callers, images))
        wall = os.times().elapsed - start
        share = {name: (seconds(process) - before[name]) / wall for name, process in found.items()}
        for spy in spies:
            spy.wait()
    rate = calls / spent
    parts = " | ".join(
        f"{1000 * share[name] / rate:.1f}" if name in share else "" for name in ("callers", *PROCESSES.values())
    )
    say(f"| {way} | {images} | {rate:.1f} | {parts} | {1000 * sum(share.values()) / rate:.1f} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=number(0, above=True), default=8.0, help="per row")
    parser.add_argument("--images", type=whole(1), nargs="+", default=[1], help="images per call")
    parser.add_argument("--callers", type=whole(1), default=16)
    parser.add_argument("--judge", default="builtin", help="builtin, student, or a Hugging Face folder")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--record", type=Path, help="folder for py-spy's stacks of every process")
    args = parser.parse_args()
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.judge, args.seconds)
    say(f"bare forward of 64 images, one thread: {bench.bare(2):.1f} images/s")
    names = " | ".join(f"{name}, ms" for name in ("callers", *PROCESSES.values()))
    say(f"| way | images a call | calls/s | {names} | all, ms |\n|---|---|---|---|---|---|---|---|")
    with reward_service(args.judge, 64) as url:
        for images in args.images:
            for way in args.ways:
                cost(bench, way, url, images, args.callers, args.record)


if __name__ == "__main__":
    main()
