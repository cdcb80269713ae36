"""Looking at a generator: images of fixed prompts from fixed noise, what the reward says, and what the reward cannot
move.

    Look          images and every figure of them, prompt by seed
    compare       two looks at the same prompts: paired differences with intervals over prompts

Figures: reward/<name> (the learned scores), verifier/<dimension>, verifier/sum, verifier/match and verifier/clutter
(prompts of the simulated world only), image/<statistic> (`functional.image_statistics`), image/seed_distance,
image/moved (from the untrained images).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from zr_ray.functional.gsb import gsb
from zr_ray.functional.image_statistics import image_statistics, seed_distance
from zr_ray.functional.intervals import ratio_interval
from zr_ray.rubric import DIMENSIONS

TIE_POINTS = 0.1
"""Rubric points a dimension below which two images count as the same: a fifth of the rubric's finest step."""
RISING_IS_WORSE = (
    "image/row_variance",
    "image/column_variance",
    "image/blockiness",
    "verifier/clutter",
    "verifier/nothing_seen",
)
"""Figures whose rise is damage."""


@dataclass(frozen=True)
class Look:
    """P prompts x S seeds."""

    prompts: tuple[str, ...]
    images: np.ndarray
    """[P, S, H, W, 3] uint8."""
    figures: dict[str, np.ndarray]
    """Name -> [P, S] float64, nan where not known."""

    def first(self, count: int) -> Look:
        """The look at the first prompts."""
        return Look(self.prompts[:count], self.images[:count], {name: v[:count] for name, v in self.figures.items()})

    def save(self, path: Path) -> None:
        """One .npz; replaced atomically."""
        import os

        temporary = path.with_name(f".{path.name}")
        with open(temporary, "wb") as file:
            np.savez_compressed(file, prompts=np.array(self.prompts), images=self.images, **self.figures)
        os.replace(temporary, path)

    @staticmethod
    def load(path: Path) -> Look:
        """What `save` wrote."""
        with np.load(path) as held:
            figures = {name: held[name] for name in held.files if name not in ("prompts", "images")}
            return Look(tuple(str(p) for p in held["prompts"]), held["images"], figures)


def is_world(prompts: Sequence[str]) -> bool:
    """Whether the verifier can read all these prompts."""
    from zr_ray.errors import DataError
    from zr_ray.world.verifier.scores import parse_prompt

    try:
        return all(parse_prompt(prompt) is not None for prompt in prompts)
    except DataError:
        return False


def independent_figures(images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Statistics and, for the world's prompts and size, the verifier's reading.   images: [N, H, W, 3] uint8.
    Returns: name -> [N]."""
    pixels = torch.from_numpy(images).movedim(-1, 1).float() / 255
    figures = {f"image/{name}": value.double().numpy() for name, value in image_statistics(pixels).items()}
    if images.shape[1:3] == (64, 64) and is_world(prompts):
        figures |= _verified(images, prompts)
    return figures


def _verified(images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    from zr_ray.world.verifier.reading import read_scene
    from zr_ray.world.verifier.scores import alignment_score, objects_match, plausibility_score, quality_scores

    rows = []
    for image, prompt in zip(images, prompts, strict=True):
        reading = read_scene(image)
        scores = quality_scores(reading) | {
            "alignment": alignment_score(reading, prompt),
            "plausibility": plausibility_score(reading),
        }
        row = {f"verifier/{name}": scores[name] for name in DIMENSIONS}
        row["verifier/sum"] = sum(row.values())
        row["verifier/match"] = float(objects_match(reading, prompt))
        row["verifier/clutter"] = reading.levels["clutter"]
        row["verifier/nothing_seen"] = float(not reading.objects)
        rows.append(row)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def compare(before: Look, after: Look, resamples: int = 2000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Figure -> before, after, difference, low, high (95 %, paired, over prompts) and error (standard error of the
    difference)."""
    rows = {}
    for name in before.figures:
        if name not in after.figures:
            continue
        known = np.isfinite(before.figures[name]) & np.isfinite(after.figures[name])
        count = torch.from_numpy(known.sum(1).astype(np.float64))
        sums = [torch.from_numpy(np.where(known, look.figures[name], 0.0).sum(1)) for look in (before, after)]
        if not count.sum():
            continue
        means = [float(value.sum() / count.sum()) for value in sums]
        each = ((sums[1] - sums[0]) / count.clamp_min(1))[count > 0]
        low, high = ratio_interval(sums[1] - sums[0], count, resamples, seed)
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else float("nan")
        rows[name] = {"before": means[0], "after": means[1], "difference": means[1] - means[0]}
        rows[name] |= {"low": low, "high": high, "error": error, "spread": float(np.nanstd(before.figures[name]))}
    return rows


def gsb_rows(before: Look, after: Look, resamples: int = 2000, seed: int = 0) -> dict[str, dict[str, float]]:
    """GSB by scores that training cannot move: referee and verifier, the sum and each dimension; see
    `functional.gsb`."""
    prompt = torch.arange(len(before.prompts)).repeat_interleave(before.images.shape[1])
    rows = {}
    for name in before.figures:
        if (
            name.startswith(("referee/", "verifier/"))
            and name.split("/")[1] in (*DIMENSIONS, "sum")
            and name in after.figures
        ):
            tie = TIE_POINTS * (len(DIMENSIONS) if name.endswith("/sum") else 1)
            first, second = (torch.from_numpy(look.figures[name]).flatten() for look in (before, after))
            rows[name] = gsb(first, second, prompt, tie, resamples, seed)
    return rows


def best_of(look: Look, count: int, seeds: int | None = None) -> Look:
    """The look that keeps, of each prompt's first `count` images, the one the reward likes best, in all of `seeds`
    places (None: as many as the look has)."""
    liked = np.nan_to_num(look.figures["reward/sum"][:, :count], nan=-np.inf).argmax(1)[:, None]
    seeds = seeds or look.images.shape[1]
    figures = {
        name: np.repeat(np.take_along_axis(value, liked, 1), seeds, 1)
        for name, value in look.figures.items()
        if name != "image/seed_distance"
    }
    images = np.repeat(look.images[np.arange(len(liked)), liked[:, 0]][:, None], seeds, 1)
    return Look(look.prompts, images, figures)


def with_distances(look: Look, baseline: Look | None) -> Look:
    """The look with image/seed_distance and, against a baseline of the same prompts, image/moved; in gray levels of
    255."""
    pixels = torch.from_numpy(look.images).movedim(-1, 2).float()
    seeds = look.images.shape[1]
    extra = {"image/seed_distance": np.repeat(seed_distance(pixels).double().numpy()[:, None], seeds, 1)}
    if baseline is not None:
        moved = np.abs(look.images.astype(np.float32) - baseline.images.astype(np.float32)).mean((2, 3, 4))
        extra["image/moved"] = moved.astype(np.float64)
    else:
        extra["image/moved"] = np.zeros(look.images.shape[:2])
    return Look(look.prompts, look.images, look.figures | extra)
