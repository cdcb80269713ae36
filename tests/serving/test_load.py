"""More than the service takes: 429 and 503 over HTTP, repeats by the client; and what the metrics endpoint says of all
that."""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import torch

from tests.cluster.dashboard import alert_queries, dashboard_queries, labels_of, missing_in_scrape
from zr_ray.records import RewardRequest
from zr_ray.rubric import DIMENSIONS
from zr_ray.serving import wire
from zr_ray.serving.client import RewardClient

SERVICE_QUERIES = [q for q in [*dashboard_queries(), *alert_queries()] if "run_id" not in labels_of(q)]
"""What the dashboard asks of a service and of its nodes."""
PROMPTS = ["a small red circle"] * 16


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def test_what_does_not_fit_is_refused_with_a_time_to_retry(reward_url, images):
    body = wire.request_safetensors(
        RewardRequest(images.numpy(), PROMPTS, DIMENSIONS, torch.ones(4).numpy(), 0.0, "load")
    )
    headers = {
        "Authorization": "Bearer a-token-for-tests",
        "Content-Type": wire.SAFETENSORS,
        "Accept": wire.SAFETENSORS,
    }
    ask = lambda _: requests.post(f"{reward_url}/v1/score_and_grad", data=body, headers=headers, timeout=120)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, range(16)))
    # 8 requests of 16 items are let in; the judge computes 32 items and lets 64 wait, the rest is refused after some
    # attempts
    assert set(Counter(r.status_code for r in replies)) == {200, 429, 503}
    assert all(
        r.headers["Retry-After"] == "1" and r.json()["error"]["message"] for r in replies if r.status_code != 200
    )
    scores = [wire.read_reply(r.content).mu for r in replies if r.status_code == 200]
    torch.testing.assert_close(scores[0], scores[-1], atol=1e-5, rtol=0)


def test_the_client_repeats_until_everything_is_answered(reward_url, reward_clients, images):
    alone = reward_clients["handle"].score(images, PROMPTS)
    with RewardClient("test-reward", items_per_request=16, max_in_flight=8) as client:
        got = client.score(images.repeat(8, 1, 1, 1), PROMPTS * 8)
        assert client.counters["repeated/back-pressure"] > 0 and client.counters["answered"] == 8
    torch.testing.assert_close(got.mu, alone.mu.repeat(8, 1), atol=1e-5, rtol=0)


def test_the_metrics_endpoint_tells_what_happened(reward_url, reward_clients, images):
    import ray
    from ray import serve

    broken = images.float() / 255
    broken[0, 0, 0, 0] = torch.nan
    assert reward_clients["handle"].score_and_grad(broken, PROMPTS).status[0] == "bad_pixels"
    totals = serve.get_deployment_handle("student", "test-reward").describe.remote().result()["totals"]
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 30
    while not (problem := _wrong(requests.get(address, timeout=10).text, totals)) == "":
        assert time.monotonic() < end, problem
        time.sleep(0.5)


def _wrong(text: str, totals: dict) -> str:
    """What the endpoint's text lacks, or nothing."""
    scored = [float(v) for v in re.findall(r"^ray_zr_reward_scored_total\{.*\} (\S+)$", text, re.M)]
    phases = set(re.findall(r'^ray_zr_reward_phase_s_count\{.*phase="(\w+)"', text, re.M))
    refused = set(re.findall(r'^ray_zr_reward_refused_total\{.*reason="(\w+)"', text, re.M))
    drifts = set(re.findall(r'^ray_zr_reward_(?:score|entropy)_drift\{.*dimension="(\w+)"', text, re.M))
    return "".join(
        (
            f"a replica scored {totals['ok']}, the endpoint has {scored}; " if totals["ok"] not in scored else "",
            f"phases {phases}; " if phases != {"queue", "batch", "preprocess", "forward", "backward"} else "",
            f"refused {refused}; " if not {"bad_pixels", "too_many", "overloaded"} <= refused else "",
            f"drifts {drifts}; " if drifts != set(DIMENSIONS) else "",
            "no batch sizes; " if "ray_zr_reward_batch_items_bucket" not in text else "",
            "no replicas; " if "ray_zr_reward_replicas" not in text else "",
            *(f"the dashboard asks for {name}; " for name in missing_in_scrape(SERVICE_QUERIES, text)),
        )
    )
