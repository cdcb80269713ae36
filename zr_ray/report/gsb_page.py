"""A blind comparison of two generators on one static page, and what people's votes say: the paper's headline figure for
anyone's two generators.

Pairs stand in random order with random sides (`rater_page.py`); which side is which is in the key file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from zr_ray.errors import DataError
from zr_ray.functional.gsb import gsb
from zr_ray.functional.krippendorff import krippendorff_alpha
from zr_ray.report.rater_page import draw_seed, embedded, random_names, read_exports, read_key, study_name, write_study
from zr_ray.rubric import RESERVED

FORMAT = "zr_ray.gsb.votes.2"
OVERALL = RESERVED[0]
"""Name of the question that asks about everything at once."""
QUESTION = (
    "Which image would you rather have for this prompt? Look at what is asked for, at realism, at beauty, at physics."
)
HOW = (
    "Read the prompt, look at both images.",
    "[1] left is better, [2] the same, [3] right is better; or click on an image.",
    "[←] back, [z] zoom into both.",
    "At the end: Export answers, and send the file back.",
)
SIDES = ("left", "same", "right")


def write_page(
    folder: Path,
    prompts: Sequence[str],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    *,
    seed: int | None = None,
    questions: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """Write gsb.html (for raters) and gsb_key.json (not for raters). Returns: both paths.

    Args: prompts: N texts. before, after: N images [H, W, 3] uint8 each, any sizes. seed: of names, order and sides,
    written to the key file only; None: a random one. questions: name -> text, asked of every pair in this order; None:
    `QUESTION` under the name "overall".
    Raises: DataError if prompts and images do not line up."""
    if not len(prompts) == len(before) == len(after) or not len(prompts):
        raise DataError(
            f"every prompt needs one image before and one after, got {len(prompts)}, {len(before)}, {len(after)};"
            " correct it"
        )
    questions = questions or {OVERALL: QUESTION}
    seed = draw_seed(seed)
    rng = np.random.default_rng(seed)
    names = random_names(rng, len(prompts))
    after_left = rng.random(len(prompts)) < 0.5
    pairs, held = [], {}
    for i in rng.permutation(len(prompts)).tolist():
        sides = (after[i], before[i]) if after_left[i] else (before[i], after[i])
        left, right = map(embedded, sides)
        pairs.append({"id": names[i], "prompt": prompts[i], "left": left, "right": right})
        held[names[i]] = {"prompt": prompts[i], "index": i, "after": "left" if after_left[i] else "right"}
    study = study_name([*questions, *(value for pair in pairs for value in pair.values())])
    rows = [
        {"name": name, "title": text if name == OVERALL else name, "question": "" if name == OVERALL else text}
        for name, text in questions.items()
    ]
    how = HOW if len(questions) == 1 else (*HOW[:2], "[↑] [↓] choose another question.", *HOW[2:])
    shown = {"mode": "compare", "format": FORMAT, "study": study, "how": how, "dimensions": rows, "items": pairs}
    key = {"format": FORMAT, "study": study, "seed": seed, "questions": list(questions), "pairs": held}
    return write_study(folder / "gsb.html", "Which image is better?", shown, key)


def read_votes(key_path: Path, vote_paths: Sequence[Path]) -> tuple[dict, dict[str, torch.Tensor]]:
    """(key, question -> votes [R, N]) with 1 after better, 0 same, -1 before better, nan not voted; raters in the order
    of the files.

    Raises: DataError naming the file that is no vote file of this page, has votes that it cannot give, or is a rater's
    second one."""
    key = read_key(key_path, FORMAT)
    exports = read_exports(key_path, key, vote_paths)
    for path, held in zip(vote_paths, exports, strict=True):
        _check_votes(path, held.get("votes"), key)
    votes = {
        question: torch.tensor(
            [
                [
                    _value(held["votes"].get(name, {}).get(question), pair["after"])
                    for name, pair in key["pairs"].items()
                ]
                for held in exports
            ],
            dtype=torch.float64,
        )
        for question in key["questions"]
    }
    return key, votes


def summarize_votes(
    key: dict, votes: Mapping[str, torch.Tensor], resamples: int = 2000, seed: int = 0
) -> dict[str, dict]:
    """Question -> GSB over all votes with an interval over prompts, each rater's own, and the raters' agreement
    (Krippendorff's alpha, interval scale)."""
    prompts = sorted({pair["prompt"] for pair in key["pairs"].values()})
    place = torch.tensor([prompts.index(pair["prompt"]) for pair in key["pairs"].values()])
    return {question: _summary(given, place, resamples, seed) for question, given in votes.items()}


def _summary(votes: torch.Tensor, place: torch.Tensor, resamples: int, seed: int) -> dict:
    raters, pairs = votes.shape
    pooled = gsb(torch.zeros(raters * pairs), votes.flatten(), place.repeat(raters), 0.5, resamples, seed)
    own = [gsb(torch.zeros(pairs), row, place, 0.5, 1, seed)["gsb"] for row in votes]
    return pooled | {"raters": raters, "each_rater": own, "alpha": krippendorff_alpha(votes)}


def _check_votes(path: Path, votes: object, key: dict) -> None:
    wrong = None if isinstance(votes, dict) else votes
    for name, given in votes.items() if isinstance(votes, dict) else ():
        if name not in key["pairs"] or not isinstance(given, dict):
            wrong = name
        else:
            wrong = next(
                ((name, q) for q, side in given.items() if q not in key["questions"] or side not in SIDES), wrong
            )
    if wrong is not None or votes is None:
        raise DataError(f"{path} has votes that the page cannot give, for example for {wrong!r}; export it again")


def _value(vote: str | None, after: str) -> float:
    return float("nan") if vote is None else 0.0 if vote == "same" else 1.0 if vote == after else -1.0
