"""The whole chain: train a teacher (GDSO), distil it (RISD), ask whether the student is a fit reward, post-train the
generator with it.

ray job submit --working-dir . -- python jobs/chain.py --config jobs/configs/chain_tiny.yaml

Each stage is the ordinary job and takes the last one's result; --resume goes on where the chain was interrupted, inside
a stage too. The run folder's report.html links the stages' own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zr_ray.config.chain import ChainConfig
from zr_ray.loops.chain import run_chain
from zr_ray.run import driver


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, ChainConfig, argv)
    run_chain(driver.resolve(args, ChainConfig), args, Path(__file__).resolve().parent)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
