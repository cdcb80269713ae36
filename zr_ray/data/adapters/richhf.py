"""RichHF-18K (Liang et al., arXiv 2312.10240): rated Pick-a-Pic images, the nearest public match to our dimensions.

Source, read: github.com/google-research-datasets/richhf-18k at 65290d3 (README: eight features, "the higher the
better"; no license file), google-research/richhf_18k/parse_tfrecord_file.py at 1963839 (the feature types),
youweiliang/RichHF at 4ea4f4c (get_dataset.py: how file names lead to Pick-a-Pic v1; train.py: artifact = plausibility)
and the viewer of huggingface.co/datasets/RAraghavarora/RichHumanFeedback, a mirror with captions and images (float
scores 0..1 in steps of 1/12: the mean of three annotators' (r - 1) / 4). Layout: train.tfrecord, dev.tfrecord,
test.tfrecord of tf.train.Example: filename (bytes, "train/<uid>.png"), aesthetics_score, artifact_score,
misalignment_score, overall_score (float), artifact_map, misalignment_map, prompt_misalignment_label. The records hold
neither image nor prompt: both are looked up in Pick-a-Pic v1 by uid. The mirror is Parquet with the same columns and
caption, image. The TFRecord files themselves are in Git LFS and were not seen; names and types are those of Google's
own reader.

    alignment    <- misalignment_score (in spite of its name, higher is better aligned), s = 1 + 4 x
    aesthetics   <- aesthetics_score, the same
    plausibility <- artifact_score ("artifact/implausibility"; the paper's tables call it plausibility), the same. It
                    covers our realism as well; artifact_to="realism" or "both" sends it there instead
    overall_score has no dimension here and is not converted, nor are the heat maps and the word labels
Splits: the file name. Scores are means of three annotators: train is rounded to half-points, dev and test keep the mean
as one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zr_ray.data.adapters import pickapic as pick
from zr_ray.data.adapters.conversion import Conversion, prompt_group
from zr_ray.data.adapters.fields import ADVICE, annotated, number, text, to_rubric
from zr_ray.data.adapters.sources import parquet_rows, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.data.adapters.tfrecord import examples
from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage

SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "test": "test"}
SCORES = ("misalignment_score", "aesthetics_score", "artifact_score")
ARTIFACT_TO = {"plausibility": ("plausibility",), "realism": ("realism",), "both": ("realism", "plausibility")}
_MIRROR = ("filename", "caption", *SCORES)


@dataclass(frozen=True)
class _Rated:
    """What a record says; caption and image only in the mirror."""

    where: str
    split: str
    uid: str
    scores: dict[str, float]
    caption: str | None
    image: bytes | None


def convert(
    source: Path,
    images: Path | None,
    root: Path,
    *,
    pickapic: Path | None = None,
    artifact_to: str = "plausibility",
    **options,
) -> Summary:
    """Convert RichHF-18K.

    Args: source: a .tfrecord or .parquet file, or a folder of them. images: folder of <uid>.png or <uid>.jpg, or None
    if Pick-a-Pic's files or the mirror hold the images. pickapic: Pick-a-Pic v1 Parquet file or folder, for prompts and
    images; needed for TFRecords. artifact_to: "plausibility", "realism" or "both". options: those of
    `Conversion`.
    Raises: DataError; ConfigError if pickapic is missing or artifact_to unknown."""
    if artifact_to not in ARTIFACT_TO:
        raise ConfigError(f"wanted artifact_to {', '.join(ARTIFACT_TO)}, got {artifact_to!r}; correct it")
    files = source_files(Path(source), ("*.tfrecord", "*.parquet"))
    if pickapic is None and any(file.suffix == ".tfrecord" for file in files):
        raise ConfigError(
            "RichHF-18K's TFRecords hold no prompts; name the Parquet files of Pick-a-Pic v1 (pickapic), which have"
            " them"
        )
    to = Conversion("richhf", images, root, **options)
    rated = to.parsed(_rows(files), lambda where, at: _rated(where, at[0], at[1], artifact_to))
    known: dict[str, tuple[str, bool]] = {}
    if pickapic is not None:
        rated = list(rated)  # numbers only: Pick-a-Pic is read once, for these
        for uid, caption, data in pick.find_images(Path(pickapic), {one.uid for one in rated if one.caption is None}):
            known[uid] = (caption, data is not None)
            if data is not None:
                to.write_image(f"{uid}.jpg", data)
    to.annotations((one.where, item) for one in rated if (item := _item(to, one, known)) is not None)
    return to.finish("overall_score has no dimension here and is not converted; nor are heat maps and word labels")


def _rows(files: list[Path]) -> Iterator[tuple[str, tuple[str, dict]]]:
    for file in files:
        split = SPLITS.get(file.stem.split("-")[0])
        if split is None:
            raise DataError(f"{file}: wanted a name that starts with {', '.join(SPLITS)}, got {file.name!r}; rename it")
        if file.suffix == ".parquet":
            for where, row in parquet_rows(file, _MIRROR, ("image",)):
                yield where, (split, row)
        else:
            for where, features in examples(file):
                row = {name: values[0] for name, values in features.items() if name in ("filename", *SCORES) and values}
                yield where, (split, row)


def _rated(where: str, split: str, row: dict, artifact_to: str) -> _Rated:
    if isinstance(row.get("filename"), bytes):
        row = row | {"filename": row["filename"].decode("utf-8", "replace")}
    uid = pick.uid({"filename": Path(text(row, "filename", where)).stem}, "filename", where)
    alignment, aesthetics, artifact = (to_rubric(number(row, name, where, 0, 1), 0, 1) for name in SCORES)
    scores = {"alignment": alignment, "aesthetics": aesthetics} | dict.fromkeys(ARTIFACT_TO[artifact_to], artifact)
    image = row.get("image")
    if isinstance(image, dict):  # the column type of the `datasets` library: {"bytes", "path"}
        image = image.get("bytes")
    if image is not None and not isinstance(image, bytes):
        raise DataError(f"{where}: wanted encoded bytes in 'image', got {type(image).__name__}; {ADVICE}")
    return _Rated(where, split, uid, scores, row.get("caption"), image)


def _item(to: Conversion, one: _Rated, known: dict[str, tuple[str, bool]]) -> AnnotatedImage | None:
    caption, placed = (one.caption, False) if one.caption is not None else known.get(one.uid, (None, False))
    if caption is None:
        return to.skip("image not in Pick-a-Pic, so no prompt", f"{one.where}: {one.uid}")
    group = prompt_group(one.split, caption)
    if not to.member(group, caption, one.split, one.where):
        return None
    held = to.root / "images" / f"{one.uid}.jpg"
    image = to.readable(held, one.where) if placed else pick.image(to, one.uid, one.image, one.where)
    if image is None:
        return None
    scores = {dimension: annotated([score], one.split) for dimension, score in one.scores.items()}
    return AnnotatedImage(one.uid, group, one.split, caption, image, scores, "richhf")
