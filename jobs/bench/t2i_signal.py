"""How much of a training step of text-to-image post-training is signal: do independent steps agree on where to go?

    python jobs/bench/t2i_signal.py [--batches 6] [--set t2i.group_size=12 ...] [--out FILE]

At the untrained generator's weights every algorithm takes its step on several batches of other prompts and noise, and
its gradient is kept in place of an update. A gradient is signal plus noise of the batch, and two independent ones have
the expected cosine |signal|^2 / (|signal|^2 + |noise|^2): the share of a step that moves all in one direction. The
reward is the built-in student, in process; the anchor has no gradient at these weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers
from zr_ray.config.arguments import whole
from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.loops.launch_t2i import T2iTask, task_prompts
from zr_ray.loops.t2i import ALGORITHMS, step_prompts
from zr_ray.models.generators.load import generator_folder
from zr_ray.models.judge_text import judge_folder
from zr_ray.run.observe import Timer
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.local_judge import LocalJudge

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "nft": ["t2i.algorithm=nft"],
    "flow_grpo": ["t2i.algorithm=flow_grpo"],
    "flow_grpo, one noise a group": ["t2i.algorithm=flow_grpo", "t2i.flow_grpo.same_noise=true"],
    "flowbp": ["t2i.algorithm=flowbp", "t2i.prompts_per_step=96"],
    "refl": ["t2i.algorithm=refl", "t2i.prompts_per_step=96"],
    "flowbp, 8 images": ["t2i.algorithm=flowbp"],
}
"""96 images a step each, and what a gradient does with a twelfth of them."""


class Watched(GeneratorWorker):
    """Keeps the gradient of a step where an update would be."""

    found: Tensor

    def apply(self, lr: float, gradient_size_now: float) -> dict[str, float]:
        """Take the gradient away; the weights stay."""
        places = [place for place in self.weights.places if place.grad is not None]
        self.found = torch.cat([place.grad.flatten() for place in places])
        for place in places:
            place.grad = None
        return {"actor/grad_norm": float(self.found.norm())}


def main() -> int:
    """Print a line per algorithm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=whole(2), default=6, help="independent steps (default %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of t2i_tiny.yaml")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here as well")
    args = parser.parse_args()
    config = load_config(T2iConfig, ROOT / "jobs/configs/t2i_tiny.yaml", args.set)
    worker = Watched(generator_folder(config.generator.path), config.generator, config.actor)
    torch.set_num_threads(args.threads)
    rewards = LocalJudge(config.reward, judge_folder(config.reward.judge))
    found = []
    for name in args.rows:
        row = agreement(name, worker, rewards, args)
        found.append(row)
        print(
            f"{name:<30} cosine {row['cosine']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]  gradient"
            f" {row['grad_norm']:.3g}  deviation of the reward in a group {row['group_std']:.2f}  {row['step_s']:.1f} s"
            " a step",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def agreement(name: str, worker: Watched, rewards: LocalJudge, args: argparse.Namespace) -> dict[str, float | str]:
    """Cosines between the gradients of independent steps, and what else is known of the last step."""
    config = load_config(T2iConfig, ROOT / "jobs/configs/t2i_tiny.yaml", [*args.set, *ROWS[name]])
    training, held_out = task_prompts(config)
    task = T2iTask(config, Path("."), generator_folder(config.generator.path), training, held_out, None, time.time())
    algorithm = ALGORITHMS[config.t2i.algorithm](config, worker, rewards, Timer())
    gradients, metrics, started = [], {}, time.perf_counter()
    for step in range(args.batches):
        metrics = algorithm.step(step_prompts(task, step, 0, 1), 0.0)
        gradients.append(worker.found / worker.found.norm())
    return {
        "name": name,
        "images": metrics["reward/images"],
        "grad_norm": metrics["actor/grad_norm"],
        "group_std": metrics.get("reward/group_std", float("nan")),
        "step_s": (time.perf_counter() - started) / args.batches,
    } | cosines(gradients)


def cosines(gradients: list[Tensor]) -> dict[str, float]:
    """gradients: B unit vectors. Mean, smallest and largest over pairs."""
    pairs = [float(one @ other) for one, other in combinations(gradients, 2)]
    return {"cosine": sum(pairs) / len(pairs), "low": min(pairs), "high": max(pairs)}


if __name__ == "__main__":
    sys.exit(main())
