"""ImageRewardDB (Xu et al., arXiv 2304.05977): expert ratings and rankings of Stable Diffusion images for DiffusionDB
prompts.

Source, read: the dataset card of huggingface.co/datasets/THUDM/ImageRewardDB (now zai-org/ImageRewardDB; Apache-2.0)
with its example record, and its loading script ImageRewardDB.py. Layout: images/SPLIT/SPLIT_N.zip, each with the images
and SPLIT_N.json, a JSON array; metadata-SPLIT.parquet with the same columns. SPLIT is train, validation or test; images
are <uuid>.webp. Fields used: image_path, prompt_id, prompt, rank (1 best; from the script, which takes the smaller rank
as the better image), image_text_alignment_rating and fidelity_rating ("true to the shape and characteristics that the
object should have").
The repository github.com/zai-org/ImageReward (Apache-2.0, read at 1392c6d) publishes its test set in another layout,
data/test.json, which its own test.py and rank_pair_dataset.py read: a JSON array of {id, prompt, generations, ranking},
images below data/test_images; train.json and valid.json look the same. It has no ratings and becomes preferences alone.
All 466 records of data/test.json have been through this adapter.
Not verified on the files themselves: that ratings run from 1 to 7. The card gives no range; a public consumer of the
set documents 1..7.

    alignment <- image_text_alignment_rating, s = 1 + 4 (r - 1) / 6
    realism   <- fidelity_rating, the same. Our realism asks for freedom from generation artifacts, fidelity for
                 undistorted objects: the nearest match, not the same question
    overall   <- rank, as preferences without gaps; overall_rating is not converted
Splits: train -> train (half-points), validation -> dev, test -> test. One annotator per image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion
from zr_ray.data.adapters.fields import annotated, names, number, numbers, text, to_rubric
from zr_ray.data.adapters.sources import json_records, parquet_rows, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.preferences import OVERALL, Preference
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage

SPLITS = {"train": "train", "validation": "dev", "test": "test"}
RATINGS = {"alignment": "image_text_alignment_rating", "realism": "fidelity_rating"}
LOW, HIGH = 1, 7
_SPLIT_OF_FILE = {"train": "train", "valid": "dev", "test": "test"}
"""File name -> split in the repository's layout, whose records do not say."""
_COLUMNS = ("image_path", "prompt_id", "prompt", "rank", *RATINGS.values())


@dataclass(frozen=True)
class _Ranked:
    """An image in the ranking of its prompt; a smaller rank is better."""

    rank: int
    where: str
    name: str
    image: Path


def convert(source: Path, images: Path, root: Path, **options) -> Summary:
    """Convert ImageRewardDB.

    Args: source: a SPLIT_N.json or metadata-SPLIT.parquet, or a folder of them (Parquet files are preferred: they hold
    everything); or the repository's test.json. images: folder in which the zips were unpacked; images are looked for
    under their full path and any of its endings. options: those of `Conversion`.
    Raises: DataError."""
    to = Conversion("imagereward", images, root, **options)
    ranked: dict[tuple[str, str, str], list[_Ranked]] = defaultdict(list)

    def parse(where: str, at: tuple[Path, dict]) -> tuple[str, AnnotatedImage] | None:
        file, row = at
        if "generations" in row:
            return _rank_list(to, ranked, where, _SPLIT_OF_FILE.get(file.stem, "test"), row)
        path, prompt = text(row, "image_path", where), text(row, "prompt", where)
        parts = path.split("/")
        split = SPLITS.get(parts[1]) if len(parts) > 2 else None
        if split is None:
            raise DataError(
                f"{where}: wanted image_path images/train|validation|test/..., got {path!r}; is it ImageRewardDB?"
            )
        ratings = {d: to_rubric(number(row, name, where, LOW, HIGH), LOW, HIGH) for d, name in RATINGS.items()}
        rank = int(number(row, "rank", where, 1, 100))
        group = f"{split}-{text(row, 'prompt_id', where)}"
        if not to.member(group, prompt, split, where) or (image := to.place(path, where, by_stem=True)) is None:
            return None
        scores = {d: annotated([score], split) for d, score in ratings.items()}
        item = AnnotatedImage(Path(path).stem, group, split, prompt, image, scores, "imagereward")
        ranked[group, split, prompt].append(_Ranked(rank, where, item.id, image))
        return where, item

    to.annotations(to.parsed(_rows(Path(source)), parse))
    to.preferences(_from_ranks(to, ranked))
    rated = "overall_rating has no dimension here and is not converted; the ranking of all images of a prompt is, as"
    return to.finish(*([f"{rated} preferences"] if to.summary.items else []))


def _rank_list(to: Conversion, ranked: dict, where: str, split: str, row: dict) -> None:
    """Take in one record of the repository's layout: the images of a prompt and their ranks."""
    prompt, files = text(row, "prompt", where), names(row, "generations", where)
    ranks = numbers(row, "ranking", where, 1, 100, length=len(files))
    group = f"{split}-{text(row, 'id', where)}"
    if to.member(group, prompt, split, where):
        for name, rank in zip(files, ranks, strict=True):
            image = to.place(name, where, by_stem=True)
            if image is not None:
                ranked[group, split, prompt].append(_Ranked(int(rank), where, name, image))


def _rows(source: Path) -> Iterator[tuple[str, tuple[Path, dict]]]:
    files = source_files(source, ("metadata-*.parquet", "*.json"))
    tables = [file for file in files if file.suffix == ".parquet"]
    for file in tables or files:
        for where, row in parquet_rows(file, _COLUMNS) if tables else json_records(file):
            yield where, (file, row)


def _from_ranks(to: Conversion, ranked: dict[tuple[str, str, str], list[_Ranked]]) -> Iterator[Preference]:
    """Every pair of a prompt's images with different ranks; equal ranks are counted as left out."""
    for (group, split, prompt), members in ranked.items():
        first: dict[str, _Ranked] = {}
        for member in members:  # an image listed again counts once
            first.setdefault(member.name, member)
        for a, b in combinations(first.values(), 2):
            if a.rank == b.rank:
                to.skip("pair with equal ranks", b.where)
                continue
            winner, loser = (a, b) if a.rank < b.rank else (b, a)
            yield Preference(group, split, prompt, winner.image, loser.image, OVERALL, origin="imagereward")
