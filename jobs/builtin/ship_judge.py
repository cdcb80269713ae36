"""Put a trained judge into the package as a built-in one, with a model card.

    python jobs/builtin/ship_judge.py --judge FOLDER --kind direct --out zr_ray/assets/student --fitness runs/f/*.json \
        --config jobs/configs/fit_judge.yaml --data "..." --recipe "..." --hours "..."

Copies weights, tokenizer, processor and scoring format, nothing else; refuses weights above 8 MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from safetensors import safe_open

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.builtin.shipped_card import KINDS, shipped_card
from zr_ray.errors import JudgeError, ZrRayError
from zr_ray.models.judge_text import judge_folder
from zr_ray.rubric import FORMAT_FILE, ScoringFormat

LARGEST = 8_000_000
"""Bytes of weights of a built-in judge."""
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "chat_template.jinja",
    FORMAT_FILE,
    "read_scores.py",
)
LIMITS = """64x64 scenes and the closed vocabulary of the world only. A generator that is trained on it finds what it
overlooks: keep the verifier or the referee beside every reward curve. Scores follow one rubric and are not comparable
with others."""


def ship(judge: Path, out: Path) -> int:
    """Copy the files of a judge; returns the number of parameters. Raises: JudgeError above LARGEST bytes."""
    size = (judge / "model.safetensors").stat().st_size
    if size > LARGEST:
        raise JudgeError(f"weights of a built-in judge must stay within {LARGEST} bytes, got {size}; make it smaller")
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in FILES:
        if (judge / name).is_file():
            shutil.copyfile(judge / name, fresh / name)
    ScoringFormat.load(judge).save(fresh)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
    with safe_open(out / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]
    return sum(_product(shape) for shape in shapes)


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="trained judge folder")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what it is; its card begins with it")
    parser.add_argument("--out", type=Path, required=True, help="folder in zr_ray/assets; replaced")
    parser.add_argument("--config", type=Path, required=True, help="YAML of the job that made it")
    parser.add_argument("--fitness", type=Path, nargs="*", default=[], help="JSON files of jobs/evaluate_reward.py")
    parser.add_argument("--result", type=Path, help="result.json of its training run")
    for name in ("data", "recipe", "hours"):
        parser.add_argument(f"--{name}", required=True, help=f"text of the card: {name}")
    parser.add_argument("--limits", default=LIMITS, help="text of the card: limits (default: what holds for all)")
    args = parser.parse_args(argv)
    try:
        parameters = ship(judge_folder(args.judge), args.out)
        card = shipped_card(
            args.kind,
            parameters,
            data=args.data,
            recipe=args.recipe,
            hours=args.hours,
            limits=args.limits,
            config=args.config.read_text(),
            fitness=args.fitness,
            result=args.result,
        )
        (args.out / "README.md").write_text(card)
    except (ZrRayError, OSError) as error:
        print(f"ship_judge: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {parameters / 1e6:.2f} M parameters, card {args.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
