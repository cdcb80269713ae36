"""HPD v2 (Wu et al., arXiv 2306.09341): people's choices between images of one prompt; no scores.

Source, read: github.com/tgxs002/HPSv2 at 866735e, README section "Data Structure" and the classes PreferenceDataset,
RankingDataset and the function inversion_score (a smaller rank is better) of its training code; the data are at
huggingface.co/datasets/ymhao/HPDv2 (Apache-2.0). Layout: train.json and test.json, JSON arrays, and the folders train/
and test/ with <image_id>.jpg.
    train: prompt, file_path (README) or image_path (as public loaders read it), two names; human_preference [1, 0] or
    [0, 1] test:  prompt, image_path; rank, one number per image; raw_annotations, a list of {"rank": [...],
    "user_hash": ...}
Not verified on the files themselves: that each raw ranking lists its ranks in the order of image_path, as `rank` does.

    overall <- human_preference, or every untied pair of `rank` with the votes of raw_annotations; preferences without
    gaps
Splits: the file name, train -> train, test -> test.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, prompt_group
from zr_ray.data.adapters.fields import ADVICE, names, numbers, text
from zr_ray.data.adapters.sources import split_records
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.preferences import OVERALL, Preference
from zr_ray.errors import DataError

_Order = Callable[[int, int], tuple[int | None, tuple[int, int] | None]]
"""(index a, index b) -> (index of the better image, or None for a tie; votes for the better and the worse one, if
counted)."""


def convert(source: Path, images: Path, root: Path, **options) -> Summary:
    """Convert HPD v2 into preferences.

    Args: source: train.json or test.json, or the folder with both. images: folder with train/ and test/.
    options: those of `Conversion`.   Raises: DataError."""
    to = Conversion("hpdv2", images, root, **options)
    to.preferences(
        one
        for found in to.parsed(split_records(source), lambda where, row: _preferences(to, where, *row))
        for one in found
    )
    return to.finish()


def _preferences(to: Conversion, where: str, split: str, row: dict) -> list[Preference] | None:
    prompt = text(row, "prompt", where)
    files = names(row, "file_path" if "file_path" in row else "image_path", where)
    order = _choice(row, where, files) if split == "train" else _ranking(row, where, files)
    group = prompt_group(split, prompt)
    if not to.member(group, prompt, split, where):
        return None
    images = [to.place(f"{split}/{name}", where) for name in files]
    found = []
    for a, b in combinations(range(len(files)), 2):
        better, votes = order(a, b)
        if better is None:
            to.skip("tied pair", where)
        elif votes and votes[0] < votes[1]:
            to.skip("pair whose votes contradict the averaged rank", where)
        elif images[a] is None or images[b] is None:
            to.skip("pair without one of its images", where)
        elif images[a] == images[b]:
            to.skip("pair of an image with itself", where)
        else:
            winner, loser = (images[a], images[b]) if better == a else (images[b], images[a])
            found.append(Preference(group, split, prompt, winner, loser, OVERALL, votes, "hpdv2"))
    return found


def _choice(row: dict, where: str, files: tuple[str, ...]) -> _Order:
    """Preferred of two images of a train record; no votes."""
    chosen = numbers(row, "human_preference", where, 0, 1, length=len(files))
    return lambda a, b: (None if chosen[a] == chosen[b] else a if chosen[a] > chosen[b] else b, None)


def _ranking(row: dict, where: str, files: tuple[str, ...]) -> _Order:
    """Preferred of two images of a test record: the averaged rank decides, the raw rankings vote."""
    rank = numbers(row, "rank", where, 0, 1000, length=len(files))
    raw = row.get("raw_annotations") or []
    if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
        raise DataError(
            f"{where}: wanted a list of {{'rank', 'user_hash'}} in 'raw_annotations', got {str(raw)[:60]}; {ADVICE}"
        )
    votes = [numbers(one, "rank", f"{where}: raw_annotations", 0, 1000, length=len(files)) for one in raw]

    def order(a: int, b: int) -> tuple[int | None, tuple[int, int] | None]:
        if rank[a] == rank[b]:
            return None, None
        better, worse = (a, b) if rank[a] < rank[b] else (b, a)
        counted = (sum(v[better] < v[worse] for v in votes), sum(v[better] > v[worse] for v in votes))
        return better, counted if sum(counted) else None

    return order
