"""Convert a public data set of human judgements into the on-disk format of `zr_ray/data/annotations.py` and
`preferences.py`.

    python jobs/data/convert.py --from agiqa3k --source data.csv --images AGIQA-3K --out data/agiqa3k

Nothing is downloaded. Images are hard-linked into the output folder (copied where a link is impossible). The result is
read back with every check before the summary is printed. Scales, dimensions, sources and what was verified:
zr_ray/data/adapters/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path

from zr_ray.config.arguments import fraction, number
from zr_ray.data.adapters import ADAPTERS, IMAGES_IN_SOURCE
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.annotations import FILES, read_annotations
from zr_ray.data.preferences import FILE, read_preferences, usable_losses
from zr_ray.errors import ConfigError, ZrRayError


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:12s} {line}" for name, line in ADAPTERS.items())
    made = argparse.ArgumentParser(
        description=f"{__doc__}\nadapters:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--from", dest="adapter", required=True, choices=ADAPTERS, metavar="NAME", help="adapter, one of those above"
    )
    made.add_argument(
        "--source", type=Path, required=True, help="annotation file as published, or the folder that holds it"
    )
    made.add_argument(
        "--images", type=Path, help="folder of the published images; not needed where the annotation files hold them"
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write; made if it is not there, refused if it holds a data set",
    )
    made.add_argument("--copy-images", action="store_true", help="copy images instead of hard-linking them")
    made.add_argument(
        "--skip-broken",
        action="store_true",
        help="count records that break the layout, and with --decode-images broken images, instead of stopping",
    )
    made.add_argument("--decode-images", action="store_true", help="also decode every image (slow)")
    made.add_argument(
        "--train-frac", type=fraction, help="evalmuse, agiqa3k, genai_bench: share of the prompts in train"
    )
    made.add_argument(
        "--dev-frac",
        type=fraction,
        help="evalmuse, agiqa3k, genai_bench: share of the prompts in dev; the rest is test",
    )
    made.add_argument("--min-confidence", type=number(0), help="hpdv3: leave out pairs with a confidence below this")
    made.add_argument("--pickapic", type=Path, help="richhf: Pick-a-Pic v1 Parquet files, for prompts and images")
    made.add_argument(
        "--artifact-to", help="richhf: dimension of artifact_score: plausibility (default), realism or both"
    )
    made.add_argument("--mos-to", help="agiqa3k: dimension of a CSV's only opinion score, column mos (default realism)")
    made.add_argument(
        "--mos-range",
        type=float,
        nargs=2,
        metavar=("WORST", "BEST"),
        help="agiqa3k: scale of the opinion scores (default 0 5)",
    )
    return made


def run(args: argparse.Namespace) -> Summary:
    """Convert, and read the result back.   Raises: ConfigError, DataError."""
    convert = importlib.import_module(f"zr_ray.data.adapters.{args.adapter}").convert
    given = {
        name: getattr(args, name)
        for name in ("train_frac", "dev_frac", "min_confidence", "pickapic", "artifact_to", "mos_to", "mos_range")
    }
    given = {name: value for name, value in given.items() if value is not None}
    takes = [p.name for p in inspect.signature(convert).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = [name for name in given if name not in takes]
    if unknown:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in takes) or "none of these options"
        raise ConfigError(
            f"wanted options of {args.adapter} ({flags}), got --{unknown[0].replace('_', '-')}; remove it"
        )
    if args.images is None and args.adapter not in IMAGES_IN_SOURCE:
        raise ConfigError(
            f"wanted --images, the folder of the published images: {args.adapter}'s annotation files hold none; name it"
        )
    shared = {"copy_images": args.copy_images, "skip_broken": args.skip_broken, "decode_images": args.decode_images}
    summary = convert(args.source, args.images, args.out, **given, **shared)
    if (args.out / FILES["jsonl"]).is_file():
        for _ in read_annotations(args.out):
            pass
    if (args.out / FILE).is_file():
        for _ in read_preferences(args.out):
            pass
    return summary


def main() -> int:
    args = parser().parse_args()
    try:
        summary = run(args)
    except ZrRayError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print("\n".join(summary.lines()))
    print(f"usable losses: {', '.join(usable_losses(args.out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
