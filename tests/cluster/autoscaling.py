"""An autoscaling Ray head with fake nodes, for tests: the autoscaler is real, its machines are raylets on this one.

`ray.cluster_utils.AutoscalingCluster` is not used: the wheel lacks a file it reads, and it calls `ray stop --force`,
which ends every Ray process of the machine. Version 2 of the autoscaler takes the fake provider only as an external
one (both tried with Ray 2.60).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

HEAD_ID = "f" * 51 + "00000"
"""Node id that the fake provider expects of the head."""
HEAD_TYPE = "ray.head.default"
FAKE_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


class FakeCluster:
    """Use as a context manager; leaving it ends the head, its fake nodes and everything they started."""

    def __init__(self, node_types: dict[str, dict], version: int, idle_s: float = 4.0) -> None:
        """node_types: name -> {"resources": ..., "max_workers": n}. version: 1 or 2 of the autoscaler. idle_s: until
        a node goes."""
        self.folder = Path(tempfile.mkdtemp(prefix="zra", dir="/tmp"))  # Unix sockets need a short path
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(_config(node_types, version, self.port, idle_s)))
        environment = os.environ | {
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_autoscaler_v2": "1" if version == 2 else "0",
        }  # fmt: skip
        if version == 2:
            environment |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
        environment.pop("RAY_ADDRESS", None)
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={self.port}",
                "--num-cpus=1", "--num-gpus=0",
            f"--temp-dir={self.folder / 'ray'}", "--include-dashboard=false", "--object-store-memory=80000000",
            f"--ray-client-server-port={_free_port()}", f"--autoscaling-config={config}", "--disable-usage-stats",
        ]  # fmt: skip
        self._log = open(self.folder / "head.log", "w")
        self._head = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def check(self) -> None:
        """Raise with the head's log if it has ended."""
        if self._head.poll() is not None:
            raise RuntimeError(
                f"the head ended with {self._head.returncode}: {(self.folder / 'head.log').read_text()[-2000:]}"
            )

    def autoscaler_log(self) -> str:
        """The ends of what head and autoscaler wrote, for the message of a test that failed."""
        files = [self.folder / "head.log", *sorted(self.folder.glob("ray/session_2*/logs/monitor.*"))]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def processes(self) -> list[psutil.Process]:
        """The head and everything below it; fake nodes are its children."""
        head = psutil.Process(self._head.pid)
        return [head, *head.children(recursive=True)]

    def stop(self) -> list[psutil.Process]:
        """End all of it. A head that is told to end leaves its fake nodes behind, so they are counted first and then
        ended by pid.
        Returns the processes that still live after that."""
        family = self.processes() if self._head.poll() is None else []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        _, alive = psutil.wait_procs(family, timeout=20)
        self._head.wait(20)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return alive


def _config(node_types: dict[str, dict], version: int, port: int, idle_s: float) -> dict:
    provider = {"gcs_address": f"127.0.0.1:{port}", "disable_node_updaters": True, "use_node_id_as_ip": True}
    if version == 1:
        provider |= {"type": "fake_multinode"}
    else:
        provider |= {"type": "external", "module": FAKE_PROVIDER, "launch_multiple": True, "head_node_id": HEAD_ID}
    # the fake provider calls its head so whatever the file says, and version 2 looks the name up (KeyError otherwise)
    types = {HEAD_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 0}}
    types |= {name: {"node_config": {}, "min_workers": 0} | node for name, node in node_types.items()}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands",
             "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")  # fmt: skip
    return {
        "cluster_name": "fake", "max_workers": 8, "provider": provider, "available_node_types": types,
        "head_node_type": HEAD_TYPE,
        "auth": {}, "docker": {}, "upscaling_speed": 10.0, "idle_timeout_minutes": idle_s / 60, "file_mounts": {},
        "file_mounts_sync_continuously": False,
    } | {name: [] for name in lists}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
