"""HPD v3 (Ma et al., arXiv 2508.03789): pairs of generated and real images with vote counts; no scores.

Source, read: the dataset card of huggingface.co/datasets/MizzenAI/HPDv3 (MIT) as far as stored copies show it;
MizzenAI/HPSv3 issue 28, which quotes the card on `confidence`; a fork's copy of the official class
PairwiseOriginalDataset (PlantPotatoOnMoon/HPSv3-PlusPlus at 7bdbebc, hpsv3/dataset/pairwise_dataset.py); and LightRFT's
HPDv3Handler. Layout: train.json and test.json, JSON arrays of {prompt, path1, path2, model1, model2, choice_dist,
confidence}; images unpacked beside them. path1 is always the preferred image; choice_dist is the two vote counts, or
null; confidence a number, null or "null".
Not verified on the files themselves: the order inside choice_dist. As the official code does, the larger count goes to
path1.

    overall <- path1 over path2, votes from choice_dist; preferences without gaps
Splits: the file name, train -> train, test -> test. Official train and test share prompts; the summary counts them.
"""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, prompt_group
from zr_ray.data.adapters.fields import number, numbers, text
from zr_ray.data.adapters.sources import split_records
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.preferences import OVERALL, Preference


def convert(source: Path, images: Path, root: Path, *, min_confidence: float = 0.0, **options) -> Summary:
    """Convert HPD v3 into preferences.

    Args: source: train.json or test.json, or the folder with both. images: folder that path1 and path2 are relative to.
    min_confidence: pairs whose confidence is given and below it are left out. options: those of
    `Conversion`.
    Raises: DataError."""
    to = Conversion("hpdv3", images, root, **options)

    def parse(where: str, at: tuple[str, dict]) -> Preference | None:
        split, row = at
        prompt = text(row, "prompt", where)
        paths = text(row, "path1", where), text(row, "path2", where)
        votes = _votes(row, where)
        if row.get("confidence") not in (None, "null") and number(row, "confidence", where) < min_confidence:
            return to.skip(f"confidence below {min_confidence:g}", where)
        if paths[0] == paths[1]:
            return to.skip("pair of an image with itself", where)
        if votes and votes[0] == votes[1]:
            return to.skip("tied votes", where)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where):
            return None
        winner, loser = (to.place(path, where) for path in paths)
        if winner is None or loser is None:
            return to.skip("pair without one of its images", where)
        return Preference(group, split, prompt, winner, loser, OVERALL, votes, "hpdv3")

    to.preferences(to.parsed(split_records(source), parse))
    return to.finish()


def _votes(row: dict, where: str) -> tuple[float, float] | None:
    if row.get("choice_dist") is None:
        return None
    votes = sorted(numbers(row, "choice_dist", where, 0, 1e6, length=2), reverse=True)
    return (votes[0], votes[1]) if sum(votes) else None
