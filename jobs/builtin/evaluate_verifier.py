"""How far can the verifier's reading be trusted? Its accuracy on rendered scenes per attribute and strength of
degradation, and its speed.

    python jobs/builtin/evaluate_verifier.py --images 500 --seed 0 --output verifier.json

Prints one row per attribute, one column per strength (see `zr_ray/world/verifier/accuracy.py`), and writes the same as
JSON. Needs no accelerator and no Ray; one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from zr_ray.config.arguments import seed, whole
from zr_ray.world.verifier.accuracy import STRENGTHS, accuracy_table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=whole(1), default=500, help="rendered scenes per strength")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the stream of candidates")
    parser.add_argument("--output", type=Path, default=Path("verifier.json"), help="where the JSON goes")
    args = parser.parse_args(argv)
    table = accuracy_table(args.images, args.seed)
    print(f"{'':24}" + "".join(f"{name:>9}" for name in STRENGTHS))
    for name in table[STRENGTHS[0]]:
        print(
            f"{name:24}"
            + "".join(
                f"{table[s][name]:9.0f}" if name == "images_per_s" else f"{table[s][name]:9.3f}" for s in STRENGTHS
            )
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"images": args.images, "seed": args.seed, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
