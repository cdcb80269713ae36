"""Put annotated data sets together into one, for a judge that shall learn from all of them.

    python jobs/data/mix_annotations.py --out MIX rendered=WORLD generated=GENERATED
    python jobs/data/mix_annotations.py --out MIX rendered=WORLD generated=GENERATED:train

NAME=FOLDER takes all of a set, NAME=FOLDER:train only that split (several with commas). Train on the mix with
data.path=MIX.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zr_ray.data.checks import SPLITS
from zr_ray.data.mix import mix_annotations
from zr_ray.errors import ZrRayError


def source(text: str) -> tuple[str, Path, tuple[str, ...] | None]:
    """(name, folder, splits or None for all) of NAME=FOLDER[:SPLIT,...]."""
    name, equals, rest = text.partition("=")
    folder, colon, splits = rest.rpartition(":")
    if not colon or not set(splits.split(",")) <= set(SPLITS):
        folder, splits = rest, ""
    if not name or not equals or not folder:
        raise argparse.ArgumentTypeError(f"wanted NAME=FOLDER or NAME=FOLDER:SPLIT, got {text!r}")
    return name, Path(folder), tuple(splits.split(",")) if splits else None


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", type=source, metavar="NAME=FOLDER[:SPLIT]", help="a data set to take from"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if it is not there")
    args = parser.parse_args(argv)
    if len({name for name, _, _ in args.sources}) < len(args.sources):
        parser.error("every source needs a name of its own")
    try:
        counts = mix_annotations(
            args.out,
            {name: folder for name, folder, _ in args.sources},
            splits={name: taken for name, _, taken in args.sources if taken},
        )
    except ZrRayError as error:
        print(f"mix_annotations: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {sum(counts.values())} records to {args.out.absolute()}: "
        + ", ".join(f"{name} {count}" for name, count in counts.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
