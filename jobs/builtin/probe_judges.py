"""Which pictures does a judge mistake for good ones? Noise, flat color, checkerboards, blobs, a grid over a good
scene.

    python jobs/builtin/probe_judges.py --judge rendered=runs/rendered/judge --judge mix=runs/mix/judge --data
    rendered=$PWD/W --data generated=$PWD/G

What generated images in its training data do to a judge, from the start (two runs of the same steps):

    python jobs/data/make_world.py --out W --train-groups 500 --test-groups 250 --seed 41
    python jobs/data/make_generated.py --out G --train-groups 160 --test-groups 50 --seed 41
    python jobs/data/mix_annotations.py --out MIX rendered=W generated=G:train
    ray job submit --working-dir . -- python jobs/sft.py --config jobs/configs/sft_tiny.yaml run.name=rendered
    data.path=$PWD/W ray job submit --working-dir . -- python jobs/sft.py --config jobs/configs/sft_tiny.yaml
    run.name=mix data.path=$PWD/MIX

Prints per judge the mean score of every probe, the verifier's beside them, and HPA on the test split of every data set;
then the figures of each probe's pictures that text-to-image reports give of a generator's, so that a change of those
can be told: toward the good scene or toward stripes. Writes the same as JSON. One forward per image in this process, no
Ray and no engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zr_ray.config.arguments import seed, whole
from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.errors import ZrRayError
from zr_ray.functional.image_statistics import image_statistics
from zr_ray.judging.evaluate import agreement, human_scores
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.run.result import value_text
from zr_ray.world.probes import PROBES, probe_images
from zr_ray.world.verifier.scores import verify


def named(text: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"wanted NAME=FOLDER, got {text!r}")
    return name, value


@torch.no_grad()
def scores(judge: Student, images: Sequence[np.ndarray], prompts: Sequence[str], batch: int = 64) -> torch.Tensor:
    """[N, D] expected scores, rubric points."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.stack(images[start : start + batch])).movedim(-1, 1).float() / 255
        parts.append(judge(pixels, prompts[start : start + batch]).mu)
    return torch.cat(parts).double()


def probe_table(judges: dict[str, Student], count: int, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Probe -> reader ("verifier" or a judge's name) -> dimension -> mean score."""
    prompts, pictures = probe_images(count, seed)
    table = {}
    for probe in PROBES:
        measured = [verify(image, prompt) for image, prompt in zip(pictures[probe], prompts, strict=True)]
        rows = {"verifier": {d: float(np.mean([m[d] for m in measured])) for d in DIMENSIONS}}
        for name, judge in judges.items():
            rows[name] = dict(
                zip(DIMENSIONS, scores(judge, list(pictures[probe]), prompts).mean(0).tolist(), strict=True)
            )
        table[probe] = rows
    return table


def picture_table(count: int, seed: int) -> dict[str, dict[str, float]]:
    """Probe -> figure of `functional/image_statistics.py` -> mean over its pictures."""
    _, pictures = probe_images(count, seed)
    table = {}
    for probe in PROBES:
        pixels = torch.from_numpy(np.asarray(pictures[probe])).movedim(-1, 1).float() / 255
        table[probe] = {name: float(values.mean()) for name, values in image_statistics(pixels).items()}
    return table


def agreement_table(
    judges: dict[str, Student], sets: dict[str, str], resamples: int, seed: int
) -> dict[str, dict[str, dict]]:
    """Data set -> judge -> agreement with the annotators of its test split, as in `judging/evaluate.py`."""
    table: dict[str, dict[str, dict]] = {}
    for name, folder in sets.items():
        items = list(read_annotations(folder, split="test"))
        images, prompts, human = (
            [load_image(item.image) for item in items],
            [item.prompt for item in items],
            human_scores(items, PAPER),
        )
        table[name] = {
            who: agreement(scores(judge, images, prompts), human, items, PAPER, resamples, seed)
            for who, judge in judges.items()
        }
    return table


def show(probes: dict, agreements: dict, figures: dict) -> None:
    print(f"{'mean score of':<22}{'read by':<14}" + "".join(f"{d:>14}" for d in DIMENSIONS) + f"{'mean':>8}")
    for probe, rows in probes.items():
        for who, values in rows.items():
            print(
                f"{probe:<22}{who:<14}"
                + "".join(f"{values[d]:>14.2f}" for d in DIMENSIONS)
                + f"{np.mean(list(values.values())):>8.2f}"
            )
    for name, rows in agreements.items():
        print(
            f"\nHPA on {name:<11}{'judge':<14}"
            + "".join(f"{d:>14}" for d in DIMENSIONS)
            + f"{'pooled':>8}  95 % interval"
        )
        for who, found in rows.items():
            cells = "".join(f"{value_text(found['dimensions'].get(d, {}), 'hpa'):>14}" for d in DIMENSIONS)
            bounds = " .. ".join(f"{bound:.3f}" for bound in found["pooled"]["hpa_ci"] or ())
            print(f"{'':<18}{who:<14}{cells}{value_text(found['pooled'], 'hpa'):>8}  {bounds}".rstrip())
    names = list(next(iter(figures.values())))
    print(f"\n{'figures of':<22}" + "".join(f"{name:>17}" for name in names))
    for probe, values in figures.items():
        print(f"{probe:<22}" + "".join(f"{values[name]:>17.5f}" for name in names))


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--judge", type=named, action="append", required=True, metavar="NAME=FOLDER", help="a judge folder, or builtin"
    )
    parser.add_argument(
        "--data",
        type=named,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="annotated set whose test split is judged",
    )
    parser.add_argument("--count", type=whole(1), default=64, help="pictures per probe (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="of the probes and the bootstrap (default %(default)s)")
    parser.add_argument(
        "--resamples", type=whole(1), default=1000, help="of the bootstrap over prompts (default %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("probes.json"), help="where the JSON goes (default %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        judges = {name: Student(judge_folder(path)) for name, path in args.judge}
        probes = probe_table(judges, args.count, args.seed)
        agreements = agreement_table(judges, dict(args.data), args.resamples, args.seed)
        figures = picture_table(args.count, args.seed)
    except ZrRayError as error:
        print(f"probe_judges: {error}", file=sys.stderr)
        return 1
    show(probes, agreements, figures)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"judges": dict(args.judge), "data": dict(args.data), "count": args.count, "seed": args.seed}
    args.output.write_text(
        json.dumps(facts | {"probes": probes, "agreement": agreements, "figures": figures}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
