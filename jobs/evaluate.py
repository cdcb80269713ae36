"""Judge an annotated data set with any judge folder: agreement, likelihood, calibration, ties, with intervals;
Markdown, JSON, report.

ray job submit --working-dir . -- python jobs/evaluate.py --judge builtin --data /path/to/annotations --samples 1 2 4 8

--judge PATH        judge folder, or builtin              (judge.path)
--data PATH         annotated data set                    (data.path; without it the simulated world is written and
judged)
--split NAME        train, dev or test                    (evaluate.split)
--reasoning         only after a reasoning trace          (evaluate.mode; the default is both ways)
--direct            only directly, one token
--samples N ...     traces averaged, a row each; 0 greedy (evaluate.samples)
--swap              also swap reasoning traces            (evaluate.swap)
"""

from __future__ import annotations

import argparse
import sys

from zr_ray.config.evaluate import EvaluateConfig
from zr_ray.loops.evaluation import launch_evaluation
from zr_ray.run import driver


def overrides(argv: list[str]) -> list[str]:
    """The job's own switches as `key=value`; everything else as it is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--judge")
    parser.add_argument("--data")
    parser.add_argument("--split")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--reasoning", action="store_const", const="reasoning", dest="mode")
    mode.add_argument("--direct", action="store_const", const="direct", dest="mode")
    parser.add_argument("--samples", nargs="+")
    parser.add_argument("--swap", action="store_const", const="true")
    own, rest = parser.parse_known_args(argv)
    samples = [word for word in own.samples or [] if "=" not in word]  # an override may follow the numbers
    rest += [word for word in own.samples or [] if "=" in word]
    keys = {
        "judge.path": own.judge,
        "data.path": own.data,
        "evaluate.split": own.split,
        "evaluate.mode": own.mode,
        "evaluate.samples": f"[{', '.join(samples)}]" if samples else None,
        "evaluate.swap": own.swap,
    }
    return rest + [f"{key}={value}" for key, value in keys.items() if value is not None]


def main(argv: list[str] | None = None) -> None:
    """Raises ZrRayError for everything a user can fix."""
    args = driver.arguments(__doc__, EvaluateConfig, overrides(sys.argv[1:] if argv is None else argv))
    launch_evaluation(driver.resolve(args, EvaluateConfig), args)


if __name__ == "__main__":
    sys.exit(driver.run_job(main))
