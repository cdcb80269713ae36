"""Kill replicas of a reward service at random while callers ask: every request must be answered once, correctly, none
lost, none scored 0.

    ray job submit --working-dir . -- python jobs/bench/reward_faults.py --seconds 60 --callers 16 --replicas 2

Prints the counters as JSON; exit code 1 if anything was lost, wrong, zero or an error.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from zr_ray.config.arguments import number, whole
from zr_ray.config.serve import ServeConfig
from zr_ray.run import driver
from zr_ray.run.observe import say

PROMPTS = [
    "a small red circle",
    "a blue square",
    "purple",
    "a large star",
    "two green circles",
    "a red star",
    "a small square",
    "yellow",
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=number(0, above=True), default=60.0)
    parser.add_argument("--callers", type=whole(1), default=16)
    parser.add_argument("--replicas", type=whole(1), default=2)
    parser.add_argument("--every", type=number(0, above=True), default=8.0, help="seconds between two kills")
    parser.add_argument("--http", action="store_true", help="callers use HTTP instead of handles")
    args = parser.parse_args(argv)
    from ray import serve

    from zr_ray.serving.application import application
    from zr_ray.serving.client import RewardClient
    from zr_ray.serving.faults import fault_run
    from zr_ray.serving.instance import end_serve
    from zr_ray.serving.launch import start_serve

    driver.connect(namespace="zr_ray")
    app = "reward-faults"
    config = ServeConfig.model_validate(
        {"replica": {"replicas": args.replicas, "cpus": 0.3}, "http": {"port": 0, "enabled": args.http}}
    )
    port, ours = start_serve(config)
    try:
        serve.run(application(config), name=app, route_prefix="/faults" if args.http else None)
        target = f"http://127.0.0.1:{port}/faults" if args.http else app
        images = torch.rand(len(PROMPTS), 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with RewardClient(target) as client:
            right = client.score(images, PROMPTS)
        counts = fault_run(target, app, right, images, PROMPTS, args.callers, args.seconds, args.every)
    finally:
        serve.delete(app)
        if ours:
            end_serve()
    say(json.dumps(dict(sorted(counts.items()))))
    good = counts["sent"] == counts["answered"] and not any(
        counts[name] for name in ("lost", "errors", "wrong", "zero")
    )
    say("every request answered once, correctly" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
