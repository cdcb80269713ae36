"""Every row of the paper's table: zero-shot, SFT, RewardDance, GRPO, GDSO, the parsing ablation, for two judges and
three seeds. Resumable.

ray job submit --working-dir . -- python jobs/reproduce.py --config jobs/configs/reproduce_tiny.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

from zr_ray.config.table import TableConfig
from zr_ray.loops.table import make_table
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, TableConfig, argv)
    make_table("reproduce", driver.resolve(args, TableConfig), args, Path(__file__).resolve().parent)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
