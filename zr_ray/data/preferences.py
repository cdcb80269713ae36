"""Pairs without gaps: which of two images of one prompt people preferred, and no score of either.

They stand in `preferences.jsonl`, one record a line, beside the images and beside `annotations.jsonl` where that exists
too:

    group      string; as in annotations.jsonl: one prompt and one split per group
    split      "train", "dev" or "test"
    prompt     string
    winner     path of the preferred image, relative to the folder and inside it
    loser      path of the other image; differs from winner
    dimension  one of the set's (`rubrics.py`), or "overall" when people chose by everything at once. No judge is asked
               about "overall": a loss on such a pair has to combine the expected scores of all dimensions
    votes      optional [for the winner, for the loser], numbers of annotators, winner >= loser; absent: one choice of
    unknown weight
    origin     optional string, as in annotations.jsonl; "unknown" when absent

The same pair may stand there twice and both ways round: two people chose. Unknown fields are refused. A preference
orders two images and says nothing of how far apart they are. GDSO matches that distance (Eqs. 7, 8, 10, 11), so it
cannot use these pairs: `require_scores` says so. The losses in `functional/rank.py` can.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zr_ray.data.annotations import FILES
from zr_ray.data.checks import SPLITS, check_head, image_path
from zr_ray.data.files import atomic_file, json_lines
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import ConfigError, DataError
from zr_ray.rubric import PAPER, Rubric

FILE = "preferences.jsonl"
OVERALL = "overall"
REQUIRED = ("group", "split", "prompt", "winner", "loser", "dimension")
OPTIONAL = ("votes", "origin")

PAIR_LOSSES = ("win_nll", "bradley_terry_nll", "thurstone_nll")
"""Losses of `functional/rank.py` that need an order and no scores."""

SCORE_LOSSES = {
    "pointwise_loss": "the cross-entropy of Eq. 8 needs the annotated bin of each image",
    "pairwise_loss": "the gap loss of Eq. 11 matches mu_w - mu_l to s_w - s_l, and a preference has no s_w - s_l",
    "gdso_reward": "the rewards of Eqs. 7 and 10 are distances to annotated scores and gaps",
}
"""Losses and rewards of `functional/gdso.py` that need scores, and why."""


@dataclass(frozen=True)
class Preference:
    """One human choice, or the summed choices of several people, between two images of one prompt."""

    group: str
    """Shared by all records of one prompt."""
    split: str
    """"train", "dev" or "test"."""
    prompt: str
    winner: Path
    """Absolute path of the preferred image file."""
    loser: Path
    dimension: str
    """One of the set's dimensions or "overall"."""
    votes: tuple[float, float] | None = None
    """(for the winner, for the loser), numbers of annotators; None when only the choice is known."""
    origin: str = "unknown"
    """Where images and choice come from, for example "pickapic"."""


def read_preferences(path: Path | str, *, split: str | None = None) -> Iterator[Preference]:
    """Stream the preferences of a folder (or of its file) in file order, checking every one, also those outside
    `split`.

    Raises: DataError naming file and line at the first record that breaks the format; at the end if the split is
    empty."""
    if split is not None and split not in SPLITS:
        raise DataError(f"wanted a split of {', '.join(SPLITS)}, got {split!r}; correct the name")
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(
            f"{file}: wanted a file of preferences, there is none; correct the path, or convert a data set of pairs"
        )
    rubric = read_rubric(file)
    groups: dict[str, tuple[str, str, str]] = {}
    counts = dict.fromkeys(SPLITS, 0)
    for where, raw in json_lines(file):
        one = checked_preference(raw, where, file.parent, rubric)
        line = where.rpartition(": ")[2]
        prompt, group_split, first = groups.setdefault(one.group, (one.prompt, one.split, line))
        if (prompt, group_split) != (one.prompt, one.split):
            raise DataError(
                f"{where}: wanted one prompt and one split per group, group {one.group!r} has {prompt!r} in"
                f" {group_split!r} at {first} and {one.prompt!r} in {one.split!r} here; give the records different"
                " groups, or move the whole group to one split"
            )
        counts[one.split] += 1
        if split is None or one.split == split:
            yield one
    if not (counts[split] if split else sum(counts.values())):
        held = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(
            f"{file}: wanted preferences of split {split or 'any'!r}, got none (records: {held}); add some or choose"
            " another"
        )


def checked_preference(raw: dict, where: str, root: Path, rubric: Rubric = PAPER) -> Preference:
    """The preference of a raw record. where: file and line, for messages. root: folder of the images. rubric: of the
    data set.   Raises: DataError."""
    check_head(raw, where, REQUIRED, OPTIONAL, strings=(*REQUIRED, "origin"))
    known = (*rubric.dimensions, OVERALL)
    if raw["dimension"] not in known:
        raise DataError(f"{where}: wanted dimension {', '.join(known)}, got {raw['dimension']!r}; rename it")
    winner, loser = (image_path(raw[side], f"{where}: {side}", root) for side in ("winner", "loser"))
    if winner == loser:
        raise DataError(
            f"{where}: wanted two different images, got {raw['winner']!r} as winner and loser; correct or remove the"
            " record"
        )
    votes = _votes(raw["votes"], where) if "votes" in raw else None
    return Preference(
        raw["group"], raw["split"], raw["prompt"], winner, loser, raw["dimension"], votes, raw.get("origin", "unknown")
    )


def _votes(value: object, where: str) -> tuple[float, float]:
    numbers = value if isinstance(value, list) and len(value) == 2 else []
    valid = numbers and all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in numbers)
    if not valid or sum(numbers) == 0:
        raise DataError(
            f"{where}: wanted votes [for the winner, for the loser], at least one in all, got {value!r}; correct them"
        )
    if value[0] < value[1]:
        raise DataError(
            f"{where}: wanted at least as many votes for the winner as for the loser, got {value!r}; swap winner and"
            " loser"
        )
    return float(value[0]), float(value[1])


def write_preferences(root: Path | str, preferences: Iterable[Preference]) -> Path:
    """Write `preferences.jsonl` of a folder that already holds the images; streamed and atomic.   Returns: the file.

    Raises: DataError if an image lies outside the folder."""
    root = Path(root).absolute()
    with atomic_file(root / FILE) as file:
        for one in preferences:
            file.write(json.dumps(_raw(one, root), ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return root / FILE


def _raw(one: Preference, root: Path) -> dict:
    outside = [side for side in (one.winner, one.loser) if not side.is_relative_to(root)]
    if outside:
        raise DataError(f"group {one.group!r}: wanted images inside {root}, got {outside[0]}; copy it there first")
    sides = {"winner": one.winner.relative_to(root).as_posix(), "loser": one.loser.relative_to(root).as_posix()}
    record = {"group": one.group, "split": one.split, "prompt": one.prompt} | sides | {"dimension": one.dimension}
    if one.votes is not None:
        record["votes"] = [int(v) if v == int(v) else v for v in one.votes]
    return record | ({"origin": one.origin} if one.origin else {})


def usable_losses(folder: Path | str) -> tuple[str, ...]:
    """Names of the losses and rewards that the data of a folder can serve. Scores also order images, so with them every
    one is usable."""
    folder = Path(folder)
    if folder.is_file():
        return PAIR_LOSSES if folder.name == FILE else (*SCORE_LOSSES, *PAIR_LOSSES)
    if any((folder / name).is_file() for name in FILES.values()):
        return (*SCORE_LOSSES, *PAIR_LOSSES)
    return PAIR_LOSSES if (folder / FILE).is_file() else ()


def require_scores(folder: Path | str, loss: str) -> None:
    """Refuse, before anything is loaded, a loss or reward that the data of a folder cannot serve.

    Args: folder: data set, or its annotation or preference file. loss: a name of SCORE_LOSSES or PAIR_LOSSES.
    Raises: DataError if the loss needs scores and the folder only has preferences, or has neither; ConfigError on an
    unknown name."""
    known = (*SCORE_LOSSES, *PAIR_LOSSES)
    if loss not in known:
        raise ConfigError(f"wanted a loss of {', '.join(known)}, got {loss!r}; correct the name")
    usable = usable_losses(folder)
    if not usable:
        raise DataError(f"{folder}: wanted {', '.join(FILES.values())} or {FILE}, got none of them; correct the path")
    if loss not in usable:
        raise DataError(
            f"{folder}: {loss} needs scores, got pairs without gaps only ({FILE}): {SCORE_LOSSES[loss]}; "
            f"use {', '.join(PAIR_LOSSES)} of functional/rank.py, or data with scores"
        )
