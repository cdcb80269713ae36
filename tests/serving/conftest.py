"""One real service for all tests of this folder, deployed as cluster/serve_reward.yaml is: a replica behind a gateway
on loopback, with a token."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest
import yaml

os.environ.setdefault(
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60"
)  # read where Ray starts; Serve's 5 s are short on a busy machine
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
os.environ.setdefault(
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1"
)  # a replica that cannot start is not started three times
os.environ.setdefault(
    "RAY_metrics_report_interval_ms", "4000"
)  # 10 s otherwise; each report costs the agents processor time

TOKEN = "a-token-for-tests"
APP = "test-reward"
SMALL = {"cpus": 0.2, "batch_items": 32, "max_waiting_items": 64, "drain_s": 5.0}
DEPLOY_FILE = Path(__file__).parents[2] / "cluster" / "serve_reward.yaml"


def small_service(judge: str = "builtin", **sections):
    """A small service: a replica of a fifth of a CPU, low limits."""
    from zr_ray.config.serve import ServeConfig

    tree = {
        "judge": {"path": judge},
        "replica": SMALL,
        "http": {
            "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            "max_in_flight": 8,
            "body_deadline_s": 3.0,
        },
        "limits": {
            "items": 16,
            "pixels": 65536,
            "request_pixels": 150_000,
            "prompt_chars": 300,
            "body_bytes": 3_000_000,
        },
    }
    return ServeConfig.model_validate({name: section | sections.get(name, {}) for name, section in tree.items()})


@pytest.fixture(scope="session")
def service_config():
    """The configuration of small services."""
    return small_service


@pytest.fixture(scope="session")
def serve_url(ray_cluster):
    """Serve with one HTTP proxy on a free port of loopback."""
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="session")
def reward_url(serve_url):
    """URL of the running service, deployed by what `serve deploy` calls."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from zr_ray.serving.launch import wait_until_running

    written = yaml.safe_load(DEPLOY_FILE.read_text())["applications"][0]
    deployed = written | {"name": APP, "args": small_service().model_dump(mode="json")}
    _get_global_client().deploy_apps(ServeDeploySchema(applications=[deployed]))
    wait_until_running(APP, 600)
    yield f"{serve_url}{written['route_prefix']}"
    serve.delete(APP)


@pytest.fixture(scope="session")
def reward_clients(reward_url):
    """{"handle": ..., "http": ...}."""
    from zr_ray.serving.client import RewardClient

    with RewardClient(APP) as handle, RewardClient(reward_url, token=TOKEN) as http:
        yield {"handle": handle, "http": http}
