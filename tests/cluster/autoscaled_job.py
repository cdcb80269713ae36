"""Driver of test_autoscaling: asks for the bundles of a GDSO job, sees the nodes come, lets go, sees them leave.
Prints one JSON line."""

import json
import sys
import time

import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from zr_ray.config.sections import GdsoConfig
from zr_ray.run.placement import _reserve, wanted_bundles

config = GdsoConfig.model_validate(json.loads(sys.argv[2]))
deadline_s = 150.0  # seconds each way; a quiet machine needs 7


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
bundles = [b for role in wanted_bundles(config.rollout, config.learner).values() for b in role]
group = _reserve(bundles, "autoscaled/job", deadline_s)
up_s = time.monotonic() - start
held = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
where = [held[node] for _, node in sorted(placement_group_table(group)["bundles_to_node_id"].items())]
peak = {"nodes": len(nodes()), "gpus": gpus()}
remove_placement_group(group)
start = time.monotonic()
while len(nodes()) > before and time.monotonic() - start < deadline_s:
    time.sleep(0.2)
print(
    json.dumps(
        {
            "before": before,
            "peak": peak,
            "where": where,
            "after": len(nodes()),
            "gpus_after": gpus(),
            "up_s": up_s,
            "down_s": time.monotonic() - start,
        }
    )
)
