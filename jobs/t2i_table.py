"""All algorithms of text-to-image post-training in one table, at one budget, over several seeds. Resumable.

    ray job submit --working-dir . -- python jobs/t2i_table.py --config jobs/configs/t2i_table_images.yaml
    ray job submit --working-dir . -- python jobs/t2i_table.py --config jobs/configs/t2i_table_minutes.yaml

Every run is an ordinary run of `jobs/t2i.py`, and lies in rows/ of the table's run folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zr_ray.config.t2i_table import T2iTableConfig
from zr_ray.loops.t2i_table import make_t2i_table
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, T2iTableConfig, argv)
    make_t2i_table(driver.resolve(args, T2iTableConfig), args, Path(__file__).resolve().parent)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
