"""Exported ratings of `rating_page.py` as an annotation set: images, Parquet, the set's rubric; read back by the loader
that training uses.

A training item gets one bin: the mean of its raters after dropping the highest and the lowest (from three on), rounded
to the nearest bin. A dev or test item keeps every rater's score, as in the paper's test set. Half points are settled
rater by rater, before anything is averaged: a comparison belongs to the scores of the one who made it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from zr_ray.data.annotations import read_annotations, write_annotations
from zr_ray.data.half_points import half_points
from zr_ray.data.pairs import aggregate_scores, preference_pairs
from zr_ray.errors import DataError
from zr_ray.functional.krippendorff import krippendorff_alpha
from zr_ray.records import AnnotatedImage
from zr_ray.report.rater_page import read_exports, read_key
from zr_ray.report.rating_page import FORMAT
from zr_ray.rubric import Rubric

OUTCOMES = {"left": 1, "same": 0, "right": -1}
Scores = dict[str, dict[str, float]]
"""Dimension -> image name -> score, rubric points."""


def read_ratings(key_path: Path, paths: Sequence[Path]) -> tuple[dict, list[Scores]]:
    """(key, every rater's scores with half points, in the order of the files).

    Raises: DataError naming a file that is none of this page, has scores that it cannot give, or is a rater's second
    one."""
    key = read_key(key_path, FORMAT)
    exports = read_exports(key_path, key, paths)
    return key, [_settled(path, held, key) for path, held in zip(paths, exports, strict=True)]


def agreement(key: dict, ratings: Sequence[Scores]) -> dict[str, float]:
    """Dimension -> Krippendorff's alpha of the raters' scores, interval scale; nan with a single rater."""
    return {
        d: krippendorff_alpha(torch.tensor([[own[d].get(name, np.nan) for name in key["images"]] for own in ratings]))
        for d in key["points"]
    }


def write_rated(
    out: Path,
    key_path: Path,
    key: dict,
    ratings: Sequence[Scores],
    *,
    train_frac: float = 0.8,
    dev_frac: float = 0.0,
    seed: int = 0,
) -> dict[str, int]:
    """Copy the rated images and write `annotations.parquet`, prompts split at random; at least one prompt is in test.

    Args: train_frac, dev_frac: shares of the prompts, the rest is test. seed: of the split.
    Returns: counts of train, dev and test items, training pairs, and images nobody scored (left out).
    Raises: DataError if fewer than two prompts have scores, an image is gone, or the folder holds a set already."""
    scored = {name: told for name, told in key["images"].items() if any(name in own[d] for own in ratings for d in own)}
    prompts = list(dict.fromkeys(told["prompt"] for told in scored.values()))
    if len(prompts) < 2:
        raise DataError(
            f"wanted scores for two prompts or more, one to train on and one to test, got {len(prompts)}; rate more"
        )
    if any((out / name).exists() for name in ("annotations.parquet", "annotations.jsonl")):
        raise DataError(f"{out} holds an annotation set; name another folder")
    splits = _splits(prompts, train_frac, dev_frac, seed)
    rubric = Rubric(tuple(key["points"]), tuple(key["bins"]))
    items = []
    for number, (name, told) in enumerate(scored.items()):
        given = {d: tuple(own[d][name] for own in ratings if name in own[d]) for d in rubric.dimensions}
        split, group = splits[told["prompt"]], prompts.index(told["prompt"])
        image = out.absolute() / "images" / f"{number:05d}.png"
        items.append(
            AnnotatedImage(
                id=f"{group:05d}-{name}",
                group=f"{group:05d}",
                split=split,
                prompt=told["prompt"],
                image=image,
                scores={d: _scores(s, split, rubric) for d, s in given.items() if s},
                origin="human",
            )
        )
        _copy(key_path.parent / told["image"], image)
    write_annotations(out, items, "parquet", rubric)
    read = list(read_annotations(out, decode_images=True))
    counts = {split: sum(item.split == split for item in read) for split in ("train", "dev", "test")}
    pairs = preference_pairs(item for item in read if item.split == "train")
    return counts | {"pairs": len(pairs), "unscored": len(key["images"]) - len(scored)}


def _settled(path: Path, held: dict, key: dict) -> Scores:
    """One rater's scores by dimension, half points included."""
    points, scores = key["points"], {d: {} for d in key["points"]}
    try:
        for name, given in held["scores"].items():
            for d, score in given.items():
                if name not in key["images"] or isinstance(score, bool) or score not in points[d]:
                    raise KeyError(f"{d} {score} of {name}")
                scores[d][name] = float(score)
        outcomes = {d: [] for d in points}
        for one in held["comparisons"]:
            left, right, d = one["left"], one["right"], one["dimension"]
            if key["images"][left]["prompt"] != key["images"][right]["prompt"] or {left, right} - set(scores[d]):
                raise KeyError(f"{left} with {right} in {d}")
            outcomes[d].append((left, right, OUTCOMES[one["vote"]]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} has answers that the page cannot give ({error}); export it again") from None
    return {d: _by_prompt(scores[d], outcomes[d], key, d) for d in scores}


def _by_prompt(scores: Mapping[str, float], outcomes: Sequence[tuple[str, str, int]], key: dict, d: str) -> dict:
    settled = {}
    for prompt in {key["images"][name]["prompt"] for name in scores}:
        members = {name: s for name, s in scores.items() if key["images"][name]["prompt"] == prompt}
        inside = [outcome for outcome in outcomes if outcome[0] in members]
        settled |= half_points(members, inside, key["points"][d], key["bins"])
    return settled


def _splits(prompts: Sequence[str], train_frac: float, dev_frac: float, seed: int) -> dict[str, str]:
    """Prompt -> split."""
    count = len(prompts)
    train = min(max(1, round(train_frac * count)), count - 1)
    dev = min(round(dev_frac * count), count - 1 - train)
    names = ["train"] * train + ["dev"] * dev + ["test"] * (count - train - dev)
    return {prompts[i]: names[k] for k, i in enumerate(np.random.default_rng(seed).permutation(count).tolist())}


def _scores(given: tuple[float, ...], split: str, rubric: Rubric) -> float | tuple[float, ...]:
    if split != "train":
        return given if len(given) > 1 else given[0]
    return rubric.bins[rubric.nearest_bin(aggregate_scores(given))]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise DataError(f"{source}: the rated image is gone ({error}); keep the key file with its folder") from None
