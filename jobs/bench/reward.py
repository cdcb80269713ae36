"""Images per second and latency of the reward service, against the bare forward, a pickled-JPEG endpoint and vLLM's own
server.

    python jobs/bench/reward.py --seconds 3
    python jobs/bench/reward.py --seconds 3 --parts versus      the service over HTTP and the endpoint, turn by turn

Every caller asks for all dimensions of 64 x 64 images and sends the next call when the last is answered; no image
comes twice. Files (PNG, JPEG) are encoded beforehand. One replica, one endpoint and one engine with one thread each,
like the bare forward, which is measured before and after each row: `of bare` compares with the mean of the two, so a
machine that others use stays comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import pickle
import sys
import time
from collections.abc import Awaitable, Callable

import numpy as np
import torch
from aiohttp import ClientSession, TCPConnector
from reward_servers import APP, pickled_endpoint, reward_service, running_server

from zr_ray.config.arguments import number, whole
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.student import Student
from zr_ray.rubric import ScoringFormat
from zr_ray.run import driver
from zr_ray.run.observe import say

PARTS = ("service", "versus", "endpoint", "vllm")
WORDS = ("small red circle", "blue square", "large green star", "yellow square", "purple circle", "small white star")
BARE_BATCH = {False: 64, True: 16}
"""Images of a bare forward, and of a forward and backward."""
Call = Callable[[ClientSession, slice], Awaitable[None]]
"""Asks for the images of a slice; the session is for ways that are plain HTTP."""


class Load:
    """Images and prompts, the same for every way of asking."""

    def __init__(self, count: int = 2048) -> None:
        self.images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 64, 64), dtype=np.uint8))
        self.prompts = [f"a {WORDS[i % len(WORDS)]}" for i in range(count)]
        self.png, self.jpeg = self._files("PNG"), self._files("JPEG")
        self._next = itertools.count()

    def _files(self, kind: str) -> list[bytes]:
        from PIL import Image

        files = []
        for image in self.images.permute(0, 2, 3, 1).numpy():
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, kind)
            files.append(buffer.getvalue())
        return files

    def part(self, size: int) -> slice:
        """The next `size` images."""
        start = next(self._next) * size % (len(self.prompts) - size + 1)
        return slice(start, start + size)


class Bench:
    """The table: measures rows against the bare student of this process."""

    def __init__(self, judge: str, seconds: float) -> None:
        torch.set_num_threads(1)
        self.load, self.student, self.seconds = Load(), Student(judge_folder(judge)), seconds
        self.rows: list[dict] = []

    def bare(self, seconds: float, gradient: bool = False) -> float:
        """Images per second of the batched forward, or forward and backward, in this process."""
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            part = self.load.part(BARE_BATCH[gradient])
            with torch.set_grad_enabled(gradient):
                images = (self.load.images[part].float() / 255).requires_grad_(gradient)
                mu = self.student(images, self.load.prompts[part]).mu
            if gradient:
                mu.mean(1).sum().backward()
            done += len(images)
        return done / (time.perf_counter() - start)

    def row(self, name: str, callers: int, images: int, call: Call, gradient: bool = False) -> None:
        """Measure and print one row. call: asks for one slice; runs on a new event loop."""
        aside = min(1.0, self.seconds / 3)
        before = self.bare(aside, gradient)
        calls, latencies, spent = asyncio.run(self._drive(call, callers, images))
        bare = (before + self.bare(aside, gradient)) / 2
        if not latencies:
            say(f"| {name} | {callers} | {images} | no call ended in {spent:g} s: raise --seconds | | | |")
            return
        rate = calls * images / spent
        p50, p99 = (1000 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))
        say(f"| {name} | {callers} | {images} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {rate / bare:.2f} |")
        self.rows.append(
            {
                "way": name,
                "callers": callers,
                "images": images,
                "images_per_s": rate,
                "p50_ms": p50,
                "p99_ms": p99,
                "bare_images_per_s": bare,
            }
        )

    async def _drive(self, call: Call, callers: int, images: int) -> tuple[int, list[float], float]:
        """(calls answered, latency of each in s, seconds) after a warm-up of a quarter of the time, which is not
        counted."""
        latencies: list[tuple[float, float]] = []
        start = time.perf_counter() + self.seconds / 4
        end = start + self.seconds

        async def caller() -> None:
            while (sent := time.perf_counter()) < end:
                await call(session, self.load.part(images))
                latencies.append((time.perf_counter(), time.perf_counter() - sent))

        async with ClientSession(connector=TCPConnector(limit=0)) as session:
            await asyncio.gather(*[caller() for _ in range(callers)])
        counted = [spent for answered, spent in latencies if start <= answered <= end]
        return len(counted), counted, self.seconds

    # ---- ways of asking ----

    def service(self, url: str, callers: list[int], images: int) -> None:
        """Rows of the service: transports, callers, batch sizes, gradients."""
        from zr_ray.serving.client import RewardClient

        widest = {"items_per_request": 64, "max_in_flight": max(callers)}
        with RewardClient(APP, **widest) as handle, RewardClient(url, **widest) as http:
            for name, call in (
                ("service, handle, tensors", self._scored(handle.score_async)),
                ("service, HTTP, tensors", self._scored(http.score_async)),
                ("service, HTTP, PNG in JSON", self._png(url)),
            ):
                for count in callers:
                    self.row(name, count, images, call)
            for size in (1, 16, 64):
                self.row("service, handle, tensors", 16, size, self._scored(handle.score_async))
            self.row("service, HTTP, tensors", 16, 1, self._scored(http.score_async))
            for name, client in (("handle", handle), ("HTTP", http)):
                self.row(
                    f"service, {name}, tensors, gradient",
                    4,
                    16,
                    self._scored(client.score_and_grad_async),
                    gradient=True,
                )

    def _scored(self, ask) -> Call:
        async def call(session: ClientSession, part: slice) -> None:
            scores = await ask(self.load.images[part], self.load.prompts[part])
            assert all(status == "ok" for status in scores.status), scores.status

        return call

    def _png(self, url: str) -> Call:
        def body(part: slice) -> dict:
            pairs = zip(self.load.png[part], self.load.prompts[part], strict=True)
            return {"items": [{"image": base64.b64encode(file).decode(), "prompt": prompt} for file, prompt in pairs]}

        async def call(session: ClientSession, part: slice) -> None:
            tree = await _post(session, f"{url}/v1/score", json=body(part))
            assert all(item["status"] == "ok" for item in tree["items"])

        return call

    def gradient(self, rounds: int = 8) -> dict:
        """Median seconds of a gradient call of 16 images through the handle, and of local autograd, in turn."""
        from zr_ray.serving.client import RewardClient

        part = self.load.part(16)
        images, prompts = self.load.images[part].float() / 255, self.load.prompts[part]
        local_s, served_s = [], []
        with RewardClient(APP) as client:
            for i in range(rounds + 1):
                start = time.perf_counter()
                x = images.clone().requires_grad_()
                self.student(x, prompts).mu.mean(1).sum().backward()
                middle = time.perf_counter()
                y = images.clone().requires_grad_()
                client.reward(y, prompts).sum().backward()
                if i:  # the first round warms up
                    local_s.append(middle - start)
                    served_s.append(time.perf_counter() - middle)
        off = float((x.grad - y.grad).abs().max() / x.grad.abs().max())
        local, served = float(np.median(local_s)), float(np.median(served_s))
        say(
            f"gradient of 16 images: local autograd {local:.3f} s, served {served:.3f} s, ratio {served / local:.2f},"
            f" largest relative difference {off:.1e}"
        )
        return {"local_s": local, "served_s": served, "largest_relative_difference": off}

    def endpoint(self, judge: str, callers: list[int], images: int) -> None:
        """Rows of the pickled-JPEG endpoint: one image a call, as without batching, and as many as the service gets."""
        with pickled_endpoint(judge) as base:
            for size in (1, images):
                for count in callers:
                    self.row("pickled-JPEG endpoint, one float", count, size, self._pickled(base))

    def versus(self, url: str, judge: str, images: int, callers: int = 16, rounds: int = 5) -> list[dict]:
        """The service over HTTP against the pickled-JPEG endpoint, both there all the time, asked in turn: ratios of
        each round, so that what else runs on the machine hits both."""
        from zr_ray.serving.client import RewardClient

        found = []
        with pickled_endpoint(judge) as base, RewardClient(url, items_per_request=64, max_in_flight=callers) as http:
            peer = "pickled-JPEG endpoint"
            for size, wanted in ((images, 1.0), (1, 1.5)):
                ways = {
                    peer: self._pickled(base),
                    "tensors": self._scored(http.score_async),
                    "JPEG files": self._jpeg(url),
                }
                rates: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(rounds):
                    for name, call in ways.items():
                        calls, _, spent = asyncio.run(self._drive(call, callers, size))
                        rates[name].append(calls * size / spent)
                for name in ways:
                    ratios = [ours / its for ours, its in zip(rates[name], rates[peer], strict=True)]
                    middle = float(np.median(ratios))
                    verdict = "" if name == peer else f" (wanted {wanted}: {'met' if middle >= wanted else 'not met'})"
                    say(
                        f"{callers} callers, {size} image(s) a call, {name}: {np.median(rates[name]):.1f} images/s, of"
                        f" the endpoint {middle:.2f} [{min(ratios):.2f}-{max(ratios):.2f}]{verdict}"
                    )
                    found.append({"way": name, "images": size, "callers": callers, "rates": rates[name]})
        return found

    def _pickled(self, base: str) -> Call:
        from peers import pickled_body

        async def call(session: ClientSession, part: slice) -> None:
            body = pickled_body(self.load.jpeg[part], self.load.prompts[part])
            floats = pickle.loads(await _post(session, f"{base}/score", data=body))
            assert len(floats) == part.stop - part.start

        return call

    def _jpeg(self, url: str) -> Call:
        """The same files as the endpoint gets: one as it is, several as base64 in JSON."""

        async def call(session: ClientSession, part: slice) -> None:
            files, prompts = self.load.jpeg[part], self.load.prompts[part]
            if len(files) == 1:
                headers, query = {"Content-Type": "image/jpeg"}, {"prompt": prompts[0]}
                tree = await _post(session, f"{url}/v1/score", data=files[0], headers=headers, params=query)
            else:
                items = [
                    {"image": base64.b64encode(file).decode(), "prompt": prompt}
                    for file, prompt in zip(files, prompts, strict=True)
                ]
                tree = await _post(session, f"{url}/v1/score", json={"items": items})
            assert all(item["status"] == "ok" for item in tree["items"])

        return call

    def vllm(self, judge: str, callers: list[int], images: int) -> None:
        """Rows of vLLM's OpenAI-compatible server: per image a request per dimension, sent together."""
        from peers import vllm_body

        folder = str(judge_folder(judge))
        form = ScoringFormat.load(folder)
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            folder,
            "--served-model-name",
            "judge",
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            "160",
            "--max-logprobs",
            "9",
            "--limit-mm-per-prompt",
            '{"image": 1}',
            "--host",
            "127.0.0.1",
        ]
        with running_server(
            command, {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        ) as base:

            async def one(session: ClientSession, i: int, dimension: str) -> None:
                body = vllm_body("judge", self.load.png[i], self.load.prompts[i], dimension, form)
                tree = await _post(session, f"{base}/v1/chat/completions", json=body)
                assert len(tree["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) >= 9, tree

            async def call(session: ClientSession, part: slice) -> None:
                await asyncio.gather(
                    *[one(session, i, d) for i in range(part.start, part.stop) for d in form.dimensions]
                )

            for count in callers:
                self.row("vLLM server, one token", count, images, call)


async def _post(session: ClientSession, url: str, **body):
    """The reply's JSON, or its bytes."""
    async with session.post(url, **body) as reply:
        content = await reply.read()
        assert reply.status == 200, content[:300]
        return json.loads(content) if reply.content_type == "application/json" else content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=number(0, above=True), default=10.0, help="per row")
    parser.add_argument("--images", type=whole(1), default=4, help="images per call")
    parser.add_argument("--callers", type=whole(1), nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--judge", default="builtin", help="builtin, student, or a Hugging Face folder")
    parser.add_argument("--batch-items", type=whole(1), default=64, help="replica.batch_items (default %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", help="also write the rows as JSON")
    args = parser.parse_args()
    bench = Bench(args.judge, args.seconds)
    say(
        f"bare forward of {BARE_BATCH[False]} images, one thread: {bench.bare(2):.1f} images/s; with backward of"
        f" {BARE_BATCH[True]}: {bench.bare(2, True):.1f}"
    )
    say("| way | callers | images a call | images/s | p50 ms | p99 ms | of bare |\n|---|---|---|---|---|---|---|")
    gradient, versus = None, None
    if {"service", "versus"} & set(args.parts):
        with reward_service(args.judge, args.batch_items) as url:
            if "service" in args.parts:
                bench.service(url, args.callers, args.images)
                gradient = bench.gradient()
            if "versus" in args.parts:
                versus = bench.versus(url, args.judge, args.images)
    if "endpoint" in args.parts:
        bench.endpoint(args.judge, args.callers, args.images)
    if "vllm" in args.parts:
        bench.vllm(args.judge, args.callers, args.images)
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"rows": bench.rows, "gradient": gradient, "versus": versus}, file, indent=1)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
