"""What `reward.py` measures, each there for the length of a `with`: the service, the pickled-JPEG endpoint of
`peers.py`, and any server that answers /health."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zr_ray.config.serve import ServeConfig
from zr_ray.run import driver

APP = "reward-bench"


@contextmanager
def pickled_endpoint(judge: str) -> Iterator[str]:
    """URL of the pickled-JPEG endpoint of peers.py."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).parent), "--factory"]
    with running_server([*command, "peers:pickled_jpegs", "--log-level", "warning"], {"ZR_BENCH_JUDGE": judge}) as base:
        yield base


@contextmanager
def reward_service(judge: str, batch_items: int) -> Iterator[str]:
    """URL of the service under test; it is deleted afterwards."""
    from ray import serve

    from zr_ray.serving.application import application
    from zr_ray.serving.instance import end_serve
    from zr_ray.serving.launch import start_serve

    driver.connect(namespace="zr_ray")
    http = {"port": 0, "max_in_flight": 256}
    replica = {"cpus": 0.5, "batch_items": batch_items}
    config = ServeConfig.model_validate({"judge": {"path": judge}, "replica": replica, "http": http})
    port, ours = start_serve(config)
    try:
        serve.run(application(config), name=APP, route_prefix="/bench")
        yield f"http://127.0.0.1:{port}/bench"
    finally:
        serve.delete(APP)
        if ours:
            end_serve()


@contextmanager
def running_server(command: list[str], environment: dict[str, str], deadline_s: float = 300) -> Iterator[str]:
    """URL of a server of this machine that answers /health; it is ended afterwards."""
    from zr_ray.serving.launch import free_port
    from zr_ray.startup.torchvision_shim import child_environment

    port = free_port("127.0.0.1")
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + deadline_s
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | child_environment() | {"OMP_NUM_THREADS": "1"} | environment
        process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=log, stderr=log)
        try:
            while not _answers(f"{url}/health"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"{command[2:5]} did not answer within {deadline_s:g} s:\n{log.read()[-3000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).status == 200
    except OSError:
        return False
