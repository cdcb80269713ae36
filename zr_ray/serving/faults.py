"""A service under fire: replicas are killed at random while callers keep asking; every answer is compared with the
known right one.

What `jobs/bench/reward_faults.py` runs for a minute and a test for some seconds.
Left out on purpose: lost nodes; a replica that is gone with its node looks the same to a caller.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

import torch
from torch import Tensor

from zr_ray.serving.client import RewardClient, Scores


def fault_run(
    target: str,
    app: str,
    right: Scores,
    images: Tensor,
    prompts: list[str],
    callers: int,
    seconds: float,
    every_s: float,
    token: str | None = None,
    seed: int = 0,
) -> Counter:
    """Counters of a run: sent, answered, lost, wrong, zero, errors, replicas_killed, and the client's
    repeated/<reason>.

    Each of `callers` threads asks for the images' scores again and again; every `every_s` seconds one random replica of
    any deployment of `app` on this machine gets SIGKILL. `right`: what must come back, to 1e-4. A request is lost if it
    neither answered nor raised."""
    counts, lock, end = Counter(), threading.Lock(), time.monotonic() + seconds

    def caller(number: int, client: RewardClient) -> None:
        generator = random.Random(seed * 1000 + number)
        while time.monotonic() < end:
            part = generator.sample(range(len(prompts)), k=min(4, len(prompts)))
            with lock:
                counts["sent"] += 1
            try:
                got = client.score(images[part], [prompts[i] for i in part])
            except Exception as error:
                with lock:
                    counts["errors"] += 1
                    counts[f"error/{type(error).__name__}"] += 1
                continue
            off = (
                (got.mu - right.mu[part]).abs().max() if all(s == "ok" for s in got.status) else torch.tensor(torch.inf)
            )
            with lock:
                counts["answered"] += 1
                counts["wrong"] += int(not off <= 1e-4)
                counts["zero"] += int((got.mu == 0).any())

    def killer() -> None:
        generator = random.Random(seed)
        while time.monotonic() + every_s < end:
            time.sleep(every_s)
            pids = replica_pids(app)
            if pids:
                os.kill(generator.choice(pids), signal.SIGKILL)
                counts["replicas_killed"] += 1

    with RewardClient(target, token, max_in_flight=callers, deadline_s=120, attempts=1000) as client:
        threads = [threading.Thread(target=caller, args=(i, client)) for i in range(callers)] + [
            threading.Thread(target=killer)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts.update({name: count for name, count in client.counters.items() if name.startswith("repeated/")})
    for name in ("answered", "errors", "wrong", "zero", "replicas_killed"):
        counts[name] += 0
    counts["lost"] = counts["sent"] - counts["answered"] - counts["errors"]
    return counts


def replica_pids(app: str) -> list[int]:
    """Process ids of the app's running replicas on this machine, judges and gateways, as Serve's controller has
    them."""
    import ray
    from ray.serve.context import _get_global_client

    here = ray.util.get_node_ip_address()
    deployments = _get_global_client().get_serve_details()["applications"].get(app, {}).get("deployments", {})
    replicas = [r for d in deployments.values() for r in d["replicas"]]
    return [r["pid"] for r in replicas if r["state"] == "RUNNING" and r["pid"] and r["node_ip"] == here]
