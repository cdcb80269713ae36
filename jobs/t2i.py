"""Post-train a text-to-image generator with the served reward: diffusion actors under Ray Train query the Ray Serve
endpoint.

    ray job submit --working-dir . -- python jobs/t2i.py --config jobs/configs/t2i_tiny.yaml

Algorithms: t2i.algorithm=nft|flow_grpo (scores only), flowbp|refl|draft|draft_lv (the reward's gradient). The reward
service is started and deleted by the job, or named by reward.target. The result is a diffusers folder (or LoRA weights)
in the run folder.
"""

from __future__ import annotations

import sys

from zr_ray.config.t2i import T2iConfig
from zr_ray.loops.launch_t2i import launch_t2i
from zr_ray.loops.t2i import train
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, T2iConfig, argv)
    launch_t2i(driver.resolve(args, T2iConfig), args, train)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
