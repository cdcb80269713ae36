"""Images per second of judging, all dimensions: teacher with reasoning, student one dimension at a time, student
in one forward.

    python jobs/bench/judge.py --teacher /path/to/teacher --student /path/to/student --out bench.json

(a) teacher with reasoning, one sampled trace a dimension, on vLLM
(b) student, one dimension per forward, on vLLM (one-token requests) and on transformers (batched)
(c) student, all dimensions in one forward (`zr_ray.models.student`), batched
Each part runs in a process of its own, in turns, so that a busy machine is busy for all of them; the fastest turn
counts, all are printed. Images: the built-in world's. Every part starts from decoded images and ends with the
distributions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zr_ray.config.arguments import whole
from zr_ray.errors import ZrRayError
from zr_ray.judging.speed import PARTS, measure, one_part, speed_table


def main() -> int:
    """Prints the table and the ratios; exit code 0 if every part ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="builtin", help="judge folder, or builtin")
    parser.add_argument(
        "--student", default="builtin", help="judge folder, or builtin: its speed does not depend on training"
    )
    parser.add_argument("--images", type=whole(1), default=64, help="images of a turn")
    parser.add_argument("--batch", type=whole(1), default=32, help="images of one transformers forward, (b) and (c)")
    parser.add_argument("--turns", type=whole(1), default=3, help="timed turns of each part, after an untimed one")
    parser.add_argument("--max-new-tokens", type=whole(2), default=32, help="limit of the teacher's output, tokens")
    parser.add_argument(
        "--trace-tokens", type=whole(0), default=0, help="force the teacher's outputs to this length; 0: as it reasons"
    )
    parser.add_argument("--threads", type=whole(1), default=1, help="OMP threads of each part")
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1), help="1: every part on the GPU, in bfloat16")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="write the figures as JSON here as well")
    parser.add_argument("--serve-part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.serve_part:
            one_part(args)
            return 0
        figures = measure(args, [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]])
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(speed_table(figures))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
