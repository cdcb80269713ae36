"""Distil a reasoning teacher into a student that scores in one token (RISD): Ray Data labels with vLLM, DeepSpeed
learners train.

ray job submit --working-dir . -- python jobs/risd.py --config jobs/configs/risd_tiny.yaml
"""

from __future__ import annotations

import sys

from zr_ray.config.risd import RisdConfig
from zr_ray.loops.distillation import launch_distillation
from zr_ray.loops.risd import train
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, RisdConfig, argv)
    config = driver.resolve(args, RisdConfig)
    online = config.risd.mode == "online"
    launch_distillation("risd", config, args, train, engines="teacher" if online else "none", label_training=not online)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
