"""Ask people: a blind good/same/bad comparison of two generators, or rubric scores that a judge can be trained on.

    python jobs/gsb.py page --run runs/t2i-... --pairs 100          writes gsb.html and gsb_key.json into the run folder
    python jobs/gsb.py page --before A/ --after B.csv --out study/  two generators' images, matched by prompt
    python jobs/gsb.py votes --key study/gsb_key.json votes-*.json  GSB with interval, agreement of the raters

    python jobs/gsb.py rate --images pictures.csv --out study/      writes rate.html, rate_key.json and the images
    python jobs/gsb.py annotations --key study/rate_key.json --out DATA ratings-*.json
    make gdso ARGS='data.path=DATA'

A page is one file without network: send it to your raters, they answer by key, export a file and send that back. Keep
the key file (and the folder `rated` beside it) to yourself: it says which image is whose. Images come as a folder with
a.txt beside a.png, or as a CSV, JSONL or Parquet table with the columns image and prompt. `rate` wants two images of a
prompt or more: those with the same score are compared with one another, for half points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from zr_ray.config.arguments import fraction, seed, whole
from zr_ray.data.images import load_image
from zr_ray.errors import DataError, ZrRayError
from zr_ray.judging.held_out_images import Look
from zr_ray.judging.score_images import ImageRow, read_rows
from zr_ray.report.gsb_page import OVERALL, QUESTION, read_votes, summarize_votes, write_page
from zr_ray.report.rating_page import RatingRubric, paper_rubric, read_rating_rubric, write_rating_page
from zr_ray.report.ratings import agreement, read_ratings, write_rated


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = made.add_subparsers(dest="verb", required=True)
    page = verbs.add_parser("page", help="write a page that compares two generators")
    page.add_argument("--before", type=Path, help="the one generator's images, instead of --run")
    page.add_argument("--after", type=Path, help="the other one's, of the same prompts")
    page.add_argument(
        "--pairs", type=whole(1), default=100, help="prompts to compare, one pair each (default %(default)s)"
    )
    page.add_argument("--question", default=QUESTION, help="what raters are asked")
    page.add_argument("--dimensions", nargs="+", metavar="NAME", help="ask per dimension of the rubric instead")
    rate = verbs.add_parser("rate", help="write a page that collects rubric scores")
    rate.add_argument("--images", type=Path, help="images with their prompts, instead of --run")
    rate.add_argument("--prompts", type=whole(1), help="take the images of the first so many prompts")
    rate.add_argument(
        "--per-prompt",
        type=whole(1),
        default=4,
        help="images of a prompt; more bring many comparisons, up to n(n-1)/2 a dimension (default %(default)s)",
    )
    for verb in (page, rate):
        verb.add_argument("--run", type=Path, help="run folder of jobs/t2i.py: its held-out images before and after")
        verb.add_argument("--out", type=Path, help="folder to write (default: the run folder)")
        verb.add_argument("--rubric", type=Path, help="JSON file (default: the paper's four dimensions)")
        verb.add_argument("--seed", type=seed, help="of names, order and sides (default: a random one)")
    votes = verbs.add_parser("votes", help="read exported votes")
    votes.add_argument("--key", type=Path, required=True, help="gsb_key.json of the page")
    annotations = verbs.add_parser("annotations", help="make an annotation set of exported ratings")
    annotations.add_argument("--key", type=Path, required=True, help="rate_key.json of the page")
    annotations.add_argument("--out", type=Path, required=True, help="folder to write")
    annotations.add_argument(
        "--train-frac", type=fraction, default=0.8, help="share of the prompts in train (%(default)s)"
    )
    annotations.add_argument("--dev-frac", type=fraction, default=0.0, help="in dev (%(default)s); the rest is test")
    annotations.add_argument("--seed", type=seed, default=0, help="of the split (default %(default)s)")
    for verb in (votes, annotations):
        verb.add_argument("files", type=Path, nargs="+", help="exported files")
    return made


def page(args: argparse.Namespace) -> None:
    if args.run:
        first, last = _looks(args.run)
        prompts, before, after = list(first.prompts), list(first.images[:, 0]), list(last.images[:, 0])
    else:
        _require(args.before and args.after and args.out, "page needs --run, or --before, --after and --out")
        pairs = _matched(read_rows(args.before), read_rows(args.after))[: args.pairs]
        prompts = [one.prompt for one, _ in pairs]
        before, after = ([load_image(pair[side].image) for pair in pairs] for side in (0, 1))
    questions = {OVERALL: args.question}
    if args.dimensions:
        asked = _rubric(args.rubric).qualities
        unknown = [d for d in args.dimensions if d not in asked]
        _require(not unknown, f"wanted dimensions of the rubric, {', '.join(asked)}, got {', '.join(unknown)}")
        questions = {d: asked[d].question for d in args.dimensions}
    count = min(args.pairs, len(prompts))
    html, key = write_page(
        args.out or args.run, prompts[:count], before[:count], after[:count], seed=args.seed, questions=questions
    )
    print(f"{count} pairs: {html} for the raters, {key} for you")


def rate(args: argparse.Namespace) -> None:
    if args.run:
        looks = _looks(args.run)
        prompts = [p for look in looks for p, some in zip(look.prompts, look.images, strict=True) for _ in some]
        images = [image for look in looks for some in look.images for image in some]
    else:
        _require(args.images and args.out, "rate needs --run, or --images and --out")
        rows = read_rows(args.images)
        prompts, images = [row.prompt for row in rows], [row.image for row in rows]
    wanted = dict.fromkeys(list(dict.fromkeys(prompts))[: args.prompts], 0)
    chosen = []
    for i, prompt in enumerate(prompts):
        if wanted.get(prompt, args.per_prompt) < args.per_prompt:
            wanted[prompt] += 1
            chosen.append(i)
    pixels = [image if isinstance(image, np.ndarray) else load_image(image) for image in (images[i] for i in chosen)]
    html, key = write_rating_page(
        args.out or args.run, [prompts[i] for i in chosen], pixels, _rubric(args.rubric), seed=args.seed
    )
    single = sum(count == 1 for count in wanted.values())
    print(f"{len(chosen)} images of {len(wanted)} prompts: {html} for the raters, {key} for you")
    if single:
        print(f"{single} prompts have one image only: they give no pairs to train on")


def votes(args: argparse.Namespace) -> None:
    made = summarize_votes(*read_votes(args.key, args.files))
    print(json.dumps(made, indent=1))
    for question, row in made.items():
        print(
            f"{question}: GSB {row['gsb']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], {row['pairs']} votes of"
            f" {row['raters']} rater(s), alpha {row['alpha']:.2f}"
        )


def annotations(args: argparse.Namespace) -> None:
    key, ratings = read_ratings(args.key, args.files)
    fractions = {"train_frac": args.train_frac, "dev_frac": args.dev_frac}
    counts = write_rated(args.out, args.key, key, ratings, **fractions, seed=args.seed)
    print(f"wrote {args.out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    for dimension, alpha in agreement(key, ratings).items() if len(ratings) > 1 else ():
        print(f"{dimension}: agreement of {len(ratings)} raters, Krippendorff's alpha {alpha:.2f}")


def _looks(run: Path) -> list[Look]:
    return [Look.load(run / "held_out" / f"{name}.npz") for name in ("before", "after")]


def _rubric(path: Path | None) -> RatingRubric:
    return read_rating_rubric(path) if path else paper_rubric()


def _matched(before: list[ImageRow], after: list[ImageRow]) -> list[tuple[ImageRow, ImageRow]]:
    """The k-th image of a prompt with the k-th of the other generator; images without a partner are left out."""
    others = defaultdict(list)
    for row in after:
        others[row.prompt].append(row)
    pairs = [(row, others[row.prompt].pop(0)) for row in before if others[row.prompt]]
    _require(pairs, "the two sources have no prompt in common; write the same prompts in both")
    return pairs


def _require(fulfilled: object, said: str) -> None:
    if not fulfilled:
        raise DataError(said)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    args = parser().parse_args(argv)
    try:
        {"page": page, "rate": rate, "votes": votes, "annotations": annotations}[args.verb](args)
    except (ZrRayError, OSError) as error:
        print(f"gsb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
