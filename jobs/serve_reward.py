"""Serve a student (and, if asked, a reasoning teacher) as a reward: score distributions, and the reward's gradient for
pixels.

    ray job submit --working-dir . -- python jobs/serve_reward.py

Runs until it is stopped (`ray job stop`, Ctrl-C); then the application is deleted. Callers: zr_ray/serving/client.py,
or HTTP (<route>/docs).
"""

from __future__ import annotations

import sys

from zr_ray.config.serve import ServeConfig
from zr_ray.run import driver
from zr_ray.serving.launch import launch_service


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, ServeConfig, argv)
    launch_service(driver.resolve(args, ServeConfig), args)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
