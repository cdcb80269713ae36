"""A blind comparison on one static page, and what people's votes say: the paper's headline figure for anyone's two
generators.

The page knows pairs by random names and shows them in random order with random sides; which side is which stands in a
key file that the raters do not get. Votes stay in the rater's browser until exported. Left out on purpose: a server,
accounts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zr_ray.errors import DataError
from zr_ray.functional.gsb import gsb
from zr_ray.functional.krippendorff import krippendorff_alpha

TEMPLATE = Path(__file__).parents[1] / "assets" / "gsb_page.html"
VOTES_FORMAT = "zr_ray.gsb.votes.1"
QUESTION = (
    "Which image would you rather have for this prompt? Look at what is asked for, at realism, at beauty, at physics."
)
SMALLEST_SIDE = 256
"""Pixels; smaller images are enlarged by a whole factor, pixel by pixel."""


def write_page(
    folder: Path, prompts: Sequence[str], before: np.ndarray, after: np.ndarray, *, seed: int, question: str = QUESTION
) -> tuple[Path, Path]:
    """Write gsb.html (for raters) and gsb_key.json (not for raters). Returns: both paths.

    Args: prompts: N texts. before, after: [N, H, W, 3] uint8. seed: of names, order and sides; it is in the key file
    only.
    Raises: DataError if they do not line up."""
    if not len(prompts) == len(before) == len(after) or not len(prompts):
        raise DataError(
            f"every prompt needs one image before and one after, got {len(prompts)}, {len(before)}, {len(after)};"
            " correct it"
        )
    rng = np.random.default_rng(seed)
    names = [rng.bytes(8).hex() for _ in prompts]
    after_left = rng.random(len(prompts)) < 0.5
    study = hashlib.sha256("".join(names).encode()).hexdigest()[:12]
    pairs, key = [], {}
    for i in rng.permutation(len(prompts)).tolist():
        sides = (after[i], before[i]) if after_left[i] else (before[i], after[i])
        left, right = map(_data_uri, sides)
        pairs.append({"id": names[i], "prompt": prompts[i], "left": left, "right": right})
        key[names[i]] = {"prompt": prompts[i], "index": i, "after": "left" if after_left[i] else "right"}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"study": study, "pairs": pairs}).replace("<", "\\u003c")
    page = TEMPLATE.read_text().replace("__QUESTION__", escape(question)).replace("__STUDY__", text)
    (folder / "gsb.html").write_text(page)
    (folder / "gsb_key.json").write_text(json.dumps({"study": study, "seed": seed, "pairs": key}, indent=1) + "\n")
    return folder / "gsb.html", folder / "gsb_key.json"


def read_votes(key_path: Path, vote_paths: Sequence[Path]) -> tuple[dict, torch.Tensor]:
    """(key, votes [R, N]) with 1 after better, 0 same, -1 before better, nan not voted; raters in the order of the
    files.

    Raises: DataError naming the file that is no vote file of this page, or votes for a pair it does not have."""
    key = json.loads(Path(key_path).read_text())
    names = list(key["pairs"])
    rows = []
    for path in vote_paths:
        try:
            held = json.loads(Path(path).read_text())
            votes = held["votes"] if held["format"] == VOTES_FORMAT else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no file of votes ({error}); export it from the page") from None
        if votes is None or held["study"] != key["study"]:
            raise DataError(f"{path} belongs to another page than {key_path} (study {key['study']}); leave it out")
        foreign = [name for name in votes if name not in key["pairs"] or votes[name] not in ("left", "same", "right")]
        if foreign:
            raise DataError(
                f"{path} has votes that the page cannot give, for example for {foreign[0]!r}; export it again"
            )
        rows.append([_value(votes.get(name), key["pairs"][name]["after"]) for name in names])
    if not rows:
        raise DataError("no file of votes; name at least one")
    return key, torch.tensor(rows, dtype=torch.float64)


def summarize_votes(key: dict, votes: torch.Tensor, resamples: int = 2000, seed: int = 0) -> dict:
    """GSB over all votes with an interval over prompts, each rater's own, and the raters' agreement (Krippendorff's
    alpha)."""
    prompts = sorted({pair["prompt"] for pair in key["pairs"].values()})
    place = torch.tensor([prompts.index(pair["prompt"]) for pair in key["pairs"].values()])
    raters, pairs = votes.shape
    pooled = gsb(torch.zeros(raters * pairs), votes.flatten(), place.repeat(raters), 0.5, resamples, seed)
    own = [gsb(torch.zeros(pairs), row, place, 0.5, resamples, seed)["gsb"] for row in votes]
    return pooled | {"raters": raters, "each_rater": own, "alpha": krippendorff_alpha(votes)}


def _value(vote: str | None, after: str) -> float:
    return float("nan") if vote is None else 0.0 if vote == "same" else 1.0 if vote == after else -1.0


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    factor = -(-SMALLEST_SIDE // min(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
