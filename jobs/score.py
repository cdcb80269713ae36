"""Score your own images with a judge: a folder, a table or one image in; a table and a gallery page out.

    python jobs/score.py --input images/ --prompt "a small red circle" --out scores.csv
    python jobs/score.py --input pairs.csv --out scores.parquet --gallery gallery.html --judge /path/to/judge
    python jobs/score.py --input pairs.jsonl --out scores.csv --service http://127.0.0.1:8000/reward

Tables (CSV, JSONL, Parquet) name image and prompt in columns of these names; their other columns go through. In a
folder the prompt of a.png is in a.txt, unless --prompt gives one for all. The judge runs in this process, or is the
service at --service (token from ZR_REWARD_TOKEN), which needs no model here. A killed run goes on from OUT.part; images
that cannot be read, or that the service refuses, are listed and never scored. Column `judge` names who scored: a
service can change its judge meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.errors import ZrRayError
from zr_ray.functional.aggregation import score_deviation
from zr_ray.judging.score_images import ImageScore, Judge, read_rows, score_rows, write_table
from zr_ray.models.judge_text import judge_folder
from zr_ray.report.gallery import gallery_page


def own_judge(folder: Path) -> tuple[Judge, tuple[str, ...]]:
    """The student in this process, and its dimensions; images of one size share a forward pass."""
    from zr_ray.models.identity import judge_hash
    from zr_ray.models.student import Student

    student, name = Student(folder), judge_hash(folder)

    @torch.no_grad()
    def judge(images: list[np.ndarray], prompts: list[str]) -> list[ImageScore]:
        found: list[ImageScore | None] = [None] * len(images)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(i)
        for members in by_size.values():
            pixels = torch.from_numpy(np.stack([images[i] for i in members])).movedim(-1, 1).float() / 255
            said = student(pixels, [prompts[i] for i in members])
            deviation = score_deviation(said.log_q, student.bins)
            columns = zip(members, said.mu.tolist(), deviation.tolist(), said.log_q.exp().tolist(), strict=True)
            for i, mu, sd, q in columns:
                found[i] = ImageScore(mu, sd, q, judge=name)
        return found

    return judge, student.rubric.dimensions


def served_judge(url: str) -> tuple[Judge, tuple[str, ...]]:
    """The judge behind a running reward service, and its dimensions; an item that it refuses keeps the reason as its
    error."""
    from zr_ray.serving.client import RewardClient

    client = RewardClient(url)

    def judge(images: list[np.ndarray], prompts: list[str]) -> list[ImageScore]:
        said = client.score([torch.from_numpy(image).movedim(-1, 0) for image in images], prompts)
        return [
            ImageScore(said.mu[i].tolist(), said.sigma[i].tolist(), said.q[i].tolist(), judge=said.model_hash[i])
            if said.status[i] == "ok"
            else ImageScore([], [], [], said.reason[i] or said.status[i])
            for i in range(len(images))
        ]

    return judge, client.dimensions


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix; 2 when some images could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="image, folder, or table of images and prompts")
    parser.add_argument("--out", type=Path, required=True, help="table to write: .csv or .parquet")
    parser.add_argument("--prompt", help="prompt of all images")
    parser.add_argument("--image-column", default="image", help="of a table (default %(default)s)")
    parser.add_argument("--prompt-column", default="prompt", help="of a table (default %(default)s)")
    parser.add_argument("--judge", default="student", help="judge folder or a built-in name (default %(default)s)")
    parser.add_argument("--service", help="URL of a reward service with its route, in place of --judge")
    parser.add_argument("--gallery", type=Path, help="HTML page to write")
    parser.add_argument("--batch", type=int, default=32, help="images in one request (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        rows = read_rows(
            args.input, prompt=args.prompt, image_column=args.image_column, prompt_column=args.prompt_column
        )
        judge, dimensions = served_judge(args.service) if args.service else own_judge(judge_folder(args.judge))
        part = args.out.with_name(args.out.name + ".part")
        found = list(score_rows(rows, judge, part, origin=args.service or args.judge, batch=args.batch))
        write_table(args.out, found, dimensions)
        if args.gallery:
            args.gallery.write_text(gallery_page(f"Scores of {args.input}", found, dimensions=dimensions))
        part.unlink()
    except (ZrRayError, OSError) as error:
        print(f"score: {error}", file=sys.stderr)
        return 1
    bad = [(row, score) for row, score in found if score.error]
    print(
        f"{len(found) - len(bad)} images scored, table {args.out}" + (f", page {args.gallery}" if args.gallery else "")
    )
    judges = sorted({score.judge[:12] for _, score in found if score.judge})
    if len(judges) > 1:
        print(f"scores come from {len(judges)} judges ({', '.join(judges)}): do not compare them", file=sys.stderr)
    for row, score in bad:
        print(f"not scored: {row.image}: {score.error}", file=sys.stderr)
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
