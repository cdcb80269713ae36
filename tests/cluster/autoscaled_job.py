"""Driver of test_autoscaling: asks for the bundles of a GDSO job, sees the nodes come, lets go, sees them leave.
Prints one JSON line."""

import json
import sys
import time

import ray

from zr_ray.config.gdso import GdsoConfig
from zr_ray.run.placement import worker_bundles
from zr_ray.run.room import groups_of, reserve

config = GdsoConfig.model_validate(json.loads(sys.argv[2]))
DEADLINE_S = 300.0
"""Each way; a quiet machine needs 7, one crowded with other work needed 46."""


def connect(address: str) -> None:
    for _ in range(240):
        try:
            ray.init(address, log_to_driver=False, configure_logging=False, namespace="zr_ray")
            return
        except (ConnectionError, RuntimeError, ValueError):
            time.sleep(0.5)
    raise SystemExit(f"{address} did not answer")


def nodes() -> list[dict]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def gpus() -> float:
    return sum(node.get("GPU", 0) for node in nodes())


connect(sys.argv[1])
before = len(nodes())
start = time.monotonic()
wanted = {"rollout": worker_bundles(config.rollout), "learner": worker_bundles(config.learner)}
with reserve("autoscaled", wanted, DEADLINE_S):
    up_s = time.monotonic() - start
    held = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    where = {
        group["name"].rpartition("/")[2]: [held[node] for node in group["bundles_to_node_id"].values()]
        for group in groups_of("autoscaled")
    }
    peak = {"nodes": len(nodes()), "gpus": gpus()}
start = time.monotonic()
while len(nodes()) > before and time.monotonic() - start < DEADLINE_S:
    time.sleep(0.2)
seen = {"before": before, "peak": peak, "where": where, "after": len(nodes()), "gpus_after": gpus()}
print(json.dumps(seen | {"up_s": up_s, "down_s": time.monotonic() - start}))
