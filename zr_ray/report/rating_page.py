"""Where the paper starts: people give rubric scores per dimension, then compare images of one prompt that got the same
score, for half points. One static page (`rater_page.py`), and its answers as an annotation set that `make gdso` takes.

Any rubric: a JSON file names dimensions, what is asked, and what each point means,

    {"bins": [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5],
     "dimensions": {"text rendering": {"question": "Is the lettering right?",
                                       "points": {"1": "unreadable", "3": "readable with mistakes", "5": "right"}}}}

`bins` may be left out (the paper's). `points` are the scores that raters can give; left out, they are the whole numbers
among the bins, or all bins if none lies between them. What lies between two points is given by comparison
(`data/half_points.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.data.half_points import between
from zr_ray.errors import DataError, ZrRayError
from zr_ray.report.rater_page import draw_seed, embedded, random_names, study_name, write_study
from zr_ray.rubric import PAPER, Rubric, paper_question

FORMAT = "zr_ray.ratings.1"
IMAGES = "rated"
"""Folder beside the key file with the images that were shown, by their names in the page."""
HOW = (
    "Read the prompt, look at the image.",
    "Give each quality a score by its key; [↑] [↓] choose another quality.",
    "[←] back, [z] zoom.",
)
HOW_COMPARED = "Then compare images that got the same score: [1] left is better, [2] the same, [3] right is better."
HOW_END = "At the end: Export answers, and send the file back."


@dataclass(frozen=True)
class Quality:
    """One dimension, as raters are asked about it."""

    question: str
    points: dict[float, str]
    """Score that can be given -> what it means ("" where nothing is said), ascending."""


@dataclass(frozen=True)
class RatingRubric:
    """Dimensions with their words, and the scale."""

    qualities: dict[str, Quality]
    bins: tuple[float, ...]

    @property
    def rubric(self) -> Rubric:
        """Dimensions and bins, as an annotation set has them."""
        return Rubric(tuple(self.qualities), self.bins)


def paper_rubric() -> RatingRubric:
    """The paper's four dimensions and scale, in our words."""
    return RatingRubric({d: Quality(*paper_question(d)) for d in PAPER.dimensions}, PAPER.bins)


def read_rating_rubric(path: Path) -> RatingRubric:
    """The rubric of a JSON file as above.   Raises: DataError naming the file and what is wrong with it."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        unknown = set(raw) - {"bins", "dimensions"}
        bins = Rubric(bins=tuple(raw.get("bins", PAPER.bins))).bins
        qualities = {name: _quality(name, told, bins) for name, told in raw["dimensions"].items()}
        made = RatingRubric(qualities, bins)
        made.rubric  # noqa: B018  names that are none are refused here
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZrRayError) as error:
        raise DataError(f"{path} is no rubric ({error}); its form is in zr_ray/report/rating_page.py") from None
    if unknown:
        raise DataError(f"{path} has the unknown key {min(unknown)!r}; it may have bins and dimensions")
    return made


def _quality(name: str, told: dict, bins: tuple[float, ...]) -> Quality:
    if set(told) - {"question", "points"}:
        raise DataError(f"{name} may have question and points, got {', '.join(told)}")
    whole = [s for s in bins if s.is_integer()]
    points = {float(s): str(text) for s, text in told.get("points", {}).items()}
    points = points or dict.fromkeys(whole if len(whole) > 1 else bins, "")
    outside = [s for s in points if s not in bins]
    if outside or len(points) < 2:
        raise DataError(f"points of {name} must be two or more of the bins, got {', '.join(map(str, points))}")
    return Quality(str(told.get("question", "")), dict(sorted(points.items())))


def write_rating_page(
    folder: Path, prompts: Sequence[str], images: Sequence[np.ndarray], rubric: RatingRubric, *, seed: int | None = None
) -> tuple[Path, Path]:
    """Write rate.html (for raters), rate_key.json and the shown images (not for raters). Returns: both files' paths.

    Args: prompts: N texts; images of one prompt are compared with one another. images: N arrays [H, W, 3] uint8, any
    sizes. seed: of names and order, written to the key file only; None: a random one.
    Raises: DataError if prompts and images do not line up."""
    if len(prompts) != len(images) or not len(prompts):
        raise DataError(f"every image needs a prompt, got {len(images)} images and {len(prompts)} prompts; correct it")
    seed = draw_seed(seed)
    rng = np.random.default_rng(seed)
    names = random_names(rng, len(prompts))
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    items, held = [], {}
    for i in rng.permutation(len(prompts)).tolist():
        items.append({"id": names[i], "prompt": prompts[i], "image": embedded(images[i])})
    for name, prompt, image in zip(names, prompts, images, strict=True):
        file = f"{IMAGES}/{name}.png"
        Image.fromarray(image).save(folder / file)
        held[name] = {"prompt": prompt, "image": file}
    rows = [_shown(name, quality, rubric.bins) for name, quality in rubric.qualities.items()]
    study = study_name([json.dumps(rows), *(value for item in items for value in item.values())])
    compared = len(set(prompts)) < len(prompts) and any(row["compared"] for row in rows)
    how = (*HOW, *([HOW_COMPARED] if compared else []), HOW_END)
    key = {"format": FORMAT, "study": study, "seed": seed, "bins": list(rubric.bins)}
    key |= {"points": {name: list(quality.points) for name, quality in rubric.qualities.items()}, "images": held}
    shown = {"mode": "rate", "format": FORMAT, "study": study, "how": how, "dimensions": rows, "items": items}
    return write_study(folder / "rate.html", "How good is this image?", shown, key)


def _shown(name: str, quality: Quality, bins: tuple[float, ...]) -> dict:
    points = list(quality.points)
    return {
        "name": name,
        "title": name,
        "question": quality.question,
        "points": [{"value": s, "label": f"{s:g}", "text": text} for s, text in quality.points.items()],
        # scores inside which a comparison can move an image
        "compared": [s for s in points if any(between(points, bins, s, up) is not None for up in (True, False))],
    }
