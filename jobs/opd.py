"""On-policy distillation, the token-by-token baseline of RISD: the student reasons, the teacher scores the tokens it
visited.

ray job submit --working-dir . -- python jobs/opd.py --config jobs/configs/opd_tiny.yaml
"""

from __future__ import annotations

import sys

from zr_ray.config.opd import OpdConfig
from zr_ray.loops.distillation import launch_distillation
from zr_ray.loops.opd import train
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, OpdConfig, argv)
    launch_distillation("opd", driver.resolve(args, OpdConfig), args, train, engines="student", label_training=False)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
