"""Two Ray nodes on this machine that share nothing but the run folders: two raylets, each with a temporary folder and a
working folder of its own, told apart by custom resources.

Left out on purpose: a second address. Ray tells the nodes apart by their ids, and so does everything here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

START_S = 180.0
"""Until both nodes must be there; 20 s on a quiet machine."""


class TwoNodes:
    """Use as a context manager; leaving it ends both nodes and everything they started."""

    def __init__(
        self, head: Mapping[str, float], other: Mapping[str, float] | None, environment: Mapping[str, str]
    ) -> None:
        """head, other: their resources, CPU among them; without another one the head is alone. environment: of
        both."""
        self.folder = Path(tempfile.mkdtemp(prefix="zr2", dir="/tmp"))  # Unix sockets need a short path
        port = _free_port()
        self.address = f"{_own_address()}:{port}"
        self.dashboard = f"http://127.0.0.1:{(dashboard := _free_port())}"
        self._environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | environment
        self._environment.pop("RAY_ADDRESS", None)
        first = ["--head", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={_free_port()}"]  # fmt: skip
        self._nodes: list[subprocess.Popen] = []
        try:
            self._start("a", first, head)
            self._wait(1)
            if other is not None:
                self._start("b", [f"--address={self.address}"], other)
                self._wait(2)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> TwoNodes:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _start(self, name: str, arguments: list[str], resources: Mapping[str, float]) -> None:
        home = self.folder / name
        home.mkdir()
        own = {key: amount for key, amount in resources.items() if key != "CPU"}
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *arguments,
            f"--num-cpus={resources['CPU']:g}", "--num-gpus=0", f"--resources={json.dumps(own)}",
            f"--temp-dir={home / 'ray'}", "--object-store-memory=300000000",
            f"--dashboard-agent-listen-port={_free_port()}", "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        log = open(self.folder / f"{name}.log", "w")
        self._nodes.append(
            subprocess.Popen(
                command,
                env=self._environment,
                cwd=home,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        )

    def _wait(self, count: int) -> None:
        """Until `count` nodes are alive, asked from a process of its own."""
        ask = (
            "import ray, sys, time; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)\n"
            "while sum(n['Alive'] for n in ray.nodes()) < int(sys.argv[2]): time.sleep(0.3)"
        )
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            for node in self._nodes:
                if node.poll() is not None:
                    raise RuntimeError(f"a node ended with {node.returncode}: {self.log()}")
            left = max(1.0, end - time.monotonic())
            try:
                command = [sys.executable, "-c", ask, self.address, str(count)]
                if subprocess.run(command, env=self._environment, capture_output=True, timeout=left).returncode == 0:
                    return
            except subprocess.TimeoutExpired:
                break
            time.sleep(0.5)
        raise RuntimeError(f"{count} node(s) were not there in {START_S:g} s: {self.log()}")

    def replace(self, gone: str, come: str, resources: Mapping[str, float]) -> None:
        """Another node joins, then the node `gone` (`a` or `b`) ends as a machine does: at once, with all it ran."""
        self._start(come, [f"--address={self.address}"], resources)
        self._wait(3)
        _kill([self._nodes["ab".index(gone)]])

    def log(self) -> str:
        """The ends of what both nodes said."""
        return "\n".join(f"--- {file.name}\n{file.read_text()[-1500:]}" for file in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """End both nodes by the ids of their processes."""
        _kill(self._nodes)
        for node in self._nodes:
            node.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill(nodes: list[subprocess.Popen]) -> None:
    """End nodes and everything they started, and wait until it is gone."""
    family = []
    for node in nodes:
        if node.poll() is None:
            process = psutil.Process(node.pid)
            family += [process, *process.children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(family, timeout=20)


def _own_address() -> str:
    """Ray's own idea of this machine's address: it does not keep 127.0.0.1."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
