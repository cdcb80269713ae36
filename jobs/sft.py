"""Train a judge on annotated score tokens: SFT (direct, one token), or RewardDance with reasoning chains
(sft.reasoning=true).

ray job submit --working-dir . -- python jobs/sft.py --config jobs/configs/sft_tiny.yaml
"""

from __future__ import annotations

import sys

from zr_ray.config.sft import SftConfig
from zr_ray.loops.sft import train
from zr_ray.loops.training import launch_training
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, SftConfig, argv)
    config = driver.resolve(args, SftConfig)
    launch_training("rewarddance" if config.sft.reasoning else "sft", config, args, train)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
