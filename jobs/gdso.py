"""Train a reasoning judge with GDSO on Ray: vLLM actors roll out, DeepSpeed learners update, a table says how much
better it became.

ray job submit --working-dir . -- python jobs/gdso.py --config jobs/configs/gdso_tiny.yaml
"""

from __future__ import annotations

import sys

from zr_ray.config.gdso import GdsoConfig
from zr_ray.loops.gdso import train
from zr_ray.loops.training import launch_training
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, GdsoConfig, argv)
    launch_training("gdso", driver.resolve(args, GdsoConfig), args, train)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
