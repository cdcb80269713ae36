"""Images per second and latency of the reward service, against the bare forward, vLLM's own server and an endpoint without batching.

    python jobs/bench_reward.py --seconds 10 --images 4

Every caller asks for four dimensions of `--images` images per call (the peers that take one image get as many calls), 64 x 64 pixels, and
sends the next call when the last is answered. One replica with one torch thread, like the bare forward. The bare forward is measured
before and after each row, and the row is compared with the mean of the two, so that a machine that others use stays comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch

from zr_ray import driver
from zr_ray.config_serve import ServeConfig
from zr_ray.models.judge import judge_folder
from zr_ray.models.student import Student
from zr_ray.observe import say
from zr_ray.rubric import DIMENSIONS, ScoringFormat

APP = "reward-bench"
WORDS = ("small red circle", "blue square", "large green star", "yellow square", "purple circle", "small white star")
BATCH = 64


class Load:
    """Images and prompts, the same for every way of asking."""

    def __init__(self, count: int = 256) -> None:
        from PIL import Image

        generator = np.random.default_rng(0)
        self.bytes = generator.integers(0, 256, (count, 3, 64, 64), dtype=np.uint8)
        self.images = torch.from_numpy(self.bytes)
        self.prompts = [f"a {WORDS[i % len(WORDS)]}" for i in range(count)]
        self.png = []
        for image in self.bytes:
            buffer = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
            self.png.append(buffer.getvalue())

    def part(self, number: int, size: int) -> slice:
        start = number * size % (len(self.prompts) - size + 1)
        return slice(start, start + size)


def bare_rate(student: Student, load: Load, seconds: float) -> float:
    """Images per second of the batched forward in this process."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        part = load.part(done // BATCH, BATCH)
        with torch.no_grad():
            student(load.images[part].float() / 255, load.prompts[part])
        done += BATCH
    return done / (time.perf_counter() - start)


async def drive(call, callers: int, seconds: float) -> tuple[int, list[float]]:
    """(calls answered, latency of each in s) of `callers` that call(number) again and again."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await call(number)
            latencies.append(time.perf_counter() - start)
            number += callers

    await asyncio.gather(*[caller(i) for i in range(callers)])
    return len(latencies), latencies


def row(name: str, callers: int, images: int, call, student: Student, load: Load, seconds: float) -> dict:
    """One measured row; prints it."""
    asyncio.run(drive(call, callers, min(1.0, seconds / 4)))  # warm
    before = bare_rate(student, load, min(2.0, seconds / 3))
    start = time.perf_counter()
    calls, latencies = asyncio.run(drive(call, callers, seconds))
    rate = calls * images / (time.perf_counter() - start)
    bare = (before + bare_rate(student, load, min(2.0, seconds / 3))) / 2
    p50, p99 = (1000 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))
    say(f"| {name} | {callers} | {images} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {rate / bare:.2f} |")
    return {"name": name, "callers": callers, "images": images, "images_per_s": rate, "p50_ms": p50, "p99_ms": p99, "of_bare": rate / bare}


def service_rows(load: Load, student: Student, url: str, args: argparse.Namespace) -> list[dict]:
    from zr_ray.client import RewardClient

    rows = []
    for name, target in (("handle", APP), ("HTTP", url)):
        with RewardClient(target, max_in_flight=max(args.callers)) as client:

            async def call(number: int, client=client) -> None:
                part = load.part(number, args.images)
                scores = await client.score_async(load.images[part], load.prompts[part])
                assert all(s == "ok" for s in scores.status)

            rows += [row(name, callers, args.images, call, student, load, args.seconds) for callers in args.callers]
    return rows


def gradient_row(load: Load, student: Student, rounds: int = 8) -> dict:
    """Median seconds of a gradient call of 16 images through the handle, and of local autograd, in turn."""
    from zr_ray.client import RewardClient

    images, prompts = load.images[:16].float() / 255, load.prompts[:16]
    local_s, served_s = [], []
    with RewardClient(APP) as client:
        for i in range(rounds + 1):
            start = time.perf_counter()
            x = images.clone().requires_grad_()
            student(x, prompts).mu.mean(1).sum().backward()
            middle = time.perf_counter()
            y = images.clone().requires_grad_()
            client.reward(y, prompts).sum().backward()
            if i:  # the first round warms up
                local_s.append(middle - start)
                served_s.append(time.perf_counter() - middle)
    off = float((x.grad - y.grad).abs().max() / x.grad.abs().max())
    result = {"name": "gradient, 16 images", "local_s": float(np.median(local_s)), "served_s": float(np.median(served_s)), "off": off}
    say(f"gradient of 16 images: local autograd {result['local_s']:.3f} s, served {result['served_s']:.3f} s, ratio {result['served_s'] / result['local_s']:.2f}, largest relative difference {off:.1e}")
    return result


def peer_rows(load: Load, student: Student, args: argparse.Namespace) -> list[dict]:
    """The same load for the endpoint without batching and for vLLM's server."""
    import aiohttp

    folder, form = str(judge_folder("builtin")), ScoringFormat.load(judge_folder("builtin"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    from zr_ray.torchvision_shim import child_environment

    environment |= child_environment()
    unbatched = [sys.executable, "-m", "uvicorn", "--factory", "zr_ray.serving.peers:unbatched_endpoint", "--log-level", "warning", "--port"]
    vllm = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "judge", "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "160", "--max-logprobs", "9", "--limit-mm-per-prompt", '{"image": 1}', "--host", "127.0.0.1", "--port",
    ]  # fmt: skip

    async def ask_unbatched(session, base: str, i: int) -> None:
        async with session.post(f"{base}/score", params={"prompt": load.prompts[i]}, data=load.png[i]) as reply:
            assert set(await reply.json()) == set(DIMENSIONS)

    async def ask_vllm(session, base: str, i: int) -> None:
        from zr_ray.serving.peers import vllm_body

        async def one(dimension: str) -> None:
            async with session.post(f"{base}/v1/chat/completions", json=vllm_body("judge", load.png[i], load.prompts[i], dimension, form)) as reply:
                tree = await reply.json()
                assert len(tree["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) >= 9, tree

        await asyncio.gather(*[one(d) for d in DIMENSIONS])

    rows = []
    for name, command, ask, port in (("endpoint without batching", unbatched, ask_unbatched, 18931), ("vLLM server", vllm, ask_vllm, 18932)):
        base = f"http://127.0.0.1:{port}"
        with open(f"/tmp/bench_reward_{port}.log", "w") as log:
            process = subprocess.Popen([*command, str(port)], env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"{base}/health", process, 300)
            for callers in args.callers:
                sessions: list[aiohttp.ClientSession] = []

                async def call(number: int, ask=ask, base=base) -> None:
                    if not sessions or sessions[-1]._loop is not asyncio.get_running_loop():
                        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
                    part = load.part(number, args.images)
                    for i in range(part.start, part.stop):
                        await ask(sessions[-1], base, i)

                rows.append(row(name, callers, args.images, call, student, load, args.seconds))
        finally:
            process.terminate()
            process.wait(30)
    return rows


def _wait_for(url: str, process: subprocess.Popen, deadline_s: float) -> None:
    import urllib.request

    end = time.monotonic() + deadline_s
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{url} did not answer within {deadline_s:g} s; its log is in /tmp/bench_reward_*.log") from None
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="per row")
    parser.add_argument("--images", type=int, default=4, help="images per call")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", help="also write the rows as JSON")
    args = parser.parse_args()
    from ray import serve

    from zr_ray.launch_serve import start_serve
    from zr_ray.serve import application

    torch.set_num_threads(1)
    load, student = Load(), Student(judge_folder("builtin"))
    driver.connect(namespace="zr_ray")
    config = ServeConfig.model_validate({"replica": {"cpus": 0.5}, "http": {"port": 0, "max_in_flight": 256}})
    port, ours = start_serve(config)
    try:
        serve.run(application(config), name=APP, route_prefix="/bench")
        say(f"bare forward, batch {BATCH}, one thread: {bare_rate(student, load, 2):.1f} images/s")
        say("| way | callers | images a call | images/s | p50 ms | p99 ms | of bare |\n|---|---|---|---|---|---|---|")
        rows = service_rows(load, student, f"http://127.0.0.1:{port}/bench", args)
        gradient = gradient_row(load, student)
    finally:
        serve.delete(APP)
        if ours:
            serve.shutdown()
    rows += [] if args.no_peers else peer_rows(load, student, args)
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"rows": rows, "gradient": gradient}, file, indent=1)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
