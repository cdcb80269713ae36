"""Blind good/same/bad comparison by people: write the page, read the votes.

    python jobs/gsb.py page --run runs/t2i-... --pairs 100          writes gsb.html and gsb_key.json into the run folder
    python jobs/gsb.py votes --key runs/t2i-.../gsb_key.json votes-*.json

The page is one file without network; raters vote by key and export their votes. Keep the key file to yourself: it says
which side is which.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from zr_ray.errors import ZrRayError
from zr_ray.judging.held_out_images import Look
from zr_ray.report.gsb_page import QUESTION, read_votes, summarize_votes, write_page


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    page = verbs.add_parser("page", help="write the page of a finished text-to-image run")
    page.add_argument("--run", type=Path, required=True, help="run folder of jobs/t2i.py")
    page.add_argument("--pairs", type=int, default=100, help="prompts to compare, one pair each (default %(default)s)")
    page.add_argument("--seed", type=int, default=0, help="of order and sides (default %(default)s)")
    page.add_argument("--question", default=QUESTION, help="what raters are asked")
    votes = verbs.add_parser("votes", help="read exported votes")
    votes.add_argument("--key", type=Path, required=True, help="gsb_key.json of the page")
    votes.add_argument("files", type=Path, nargs="+", help="exported votes")
    args = parser.parse_args(argv)
    try:
        if args.verb == "page":
            before, after = (Look.load(args.run / "held_out" / f"{name}.npz") for name in ("before", "after"))
            count = min(args.pairs, len(before.prompts))
            images = (before.images[:count, 0], after.images[:count, 0])
            html, key = write_page(args.run, before.prompts[:count], *images, seed=args.seed, question=args.question)
            print(f"{count} pairs: {html} for the raters, {key} for you")
        else:
            made = summarize_votes(*read_votes(args.key, args.files))
            print(json.dumps(made, indent=1))
            print(
                f"GSB {made['gsb']:+.1%} [{made['low']:+.1%}, {made['high']:+.1%}], {made['raters']} rater(s), alpha"
                f" {made['alpha']:.2f}"
            )
    except (ZrRayError, OSError) as error:
        print(f"gsb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
