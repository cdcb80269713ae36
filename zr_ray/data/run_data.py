"""What a job trains on and is judged on: both splits read in one pass, with what the set's index knows of its images
(`image_index.py`). Images that it does not know are decoded, of many an even sample; of the rest the headers are read.

Refused is what the run would stumble over, counted what it can live with but people should know (`findings.py`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from zr_ray.data.annotations import annotation_file, located_annotations, read_annotations
from zr_ray.data.collector import collector_off
from zr_ray.data.findings import Findings, held_out_findings, leak_findings, scale_findings, twin_findings
from zr_ray.data.glance import glance, sample_to_decode
from zr_ray.data.image_index import ImageIndex, content_hash
from zr_ray.data.images import MAX_PIXELS, ImageTooLarge, decode
from zr_ray.data.pairs import group_items, preference_pairs
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage, PreferencePair

FEW = 1000
"""Images that are decoded whatever their size."""
DECODE_PIXELS = 2**30
"""Of larger sets so many pixels are decoded at the start: 1,024 images of 1024 x 1024, 20 to 70 s on one core."""
ItemCheck = Callable[[AnnotatedImage, int, int], str | None]
"""(item, image height, image width) -> why a judge cannot be asked about it, or None. Made by `models.item_check`."""


@dataclass(frozen=True)
class Need:
    """What the longest question of some data takes of an engine."""

    tokens: int
    """Question and image together."""
    image: tuple[int, int]
    """Height and width, pixels, of the image with the most tokens."""


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    folder: Path
    train: tuple[AnnotatedImage, ...]
    held_out: tuple[AnnotatedImage, ...]
    """The evaluation split."""
    pairs: tuple[PreferencePair, ...]
    """Same-prompt pairs of the training split with different scores."""
    warnings: tuple[str, ...]
    """What a run can live with, one line each."""
    digest: str = ""
    """Hash of everything above: records in order, pixels included."""
    need: Need | None = None
    """Of all items, None where no judge was asked about them."""

    def line(self, split: str) -> str:
        """How much there is, for a log. split: name of the evaluation split."""
        return f"{len(self.train)} training items, {len(self.pairs)} pairs, {len(self.held_out)} {split} items"

    def plan(self, split: str) -> dict[str, str]:
        """`line` and warnings as facts of a dry run."""
        return {"data": self.line(split)} | {f"warning {n}": line for n, line in enumerate(self.warnings, 1)}

    def facts(self) -> dict:
        """JSON values for the run folder (`DATA_FILE`)."""
        counts = {"train_items": len(self.train), "pairs": len(self.pairs), "held_out_items": len(self.held_out)}
        return {"folder": str(self.folder)} | counts | {"warnings": list(self.warnings)}


DATA_FILE = "data.json"
"""In the run folder: `RunData.facts`."""


def load_run_data(
    folder: Path, split: str, check: ItemCheck | None = None, dimensions: Sequence[str] | None = None
) -> RunData:
    """The training split and the evaluation split of a data set.

    Args: split: of the evaluation. check: asked about every item of both. dimensions: the judge's, pairs are made in
    these; None: all that have scores.
    Raises: DataError naming file and line of the first record that breaks the format, cannot be decoded or cannot be
    asked about; or that a split is empty."""
    findings = Findings()
    both: dict[str, list[AnnotatedImage]] = {"train": [], split: []}
    prints: dict[str, str] = {}  # id -> fingerprint of its pixels
    for item in _decoded(folder, tuple(both), check, findings, prints):
        both[item.split].append(item)
    train, held_out = both["train"], both[split]
    for name, items in both.items():
        if not items:
            list(read_annotations(folder, split=name))  # says that it is empty, and what there is
    if split != "train":
        leak_findings(train, held_out, prints, findings)
    twin_findings([*train, *(held_out if split != "train" else ())], prints, findings)
    scale_findings(train, held_out, read_rubric(folder), findings)
    held_out_findings(held_out, split, findings)
    with collector_off():
        pairs = tuple(preference_pairs(train, dimensions))
    digest = _digest([*train, *held_out], prints)
    need = getattr(check, "need", None)
    return RunData(Path(folder), tuple(train), tuple(held_out), pairs, findings.lines(), digest, need)


def _digest(items: Sequence[AnnotatedImage], prints: dict[str, str]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for i in items:
        record = (i.id, i.group, i.split, i.prompt, sorted(i.scores.items()), sorted(i.reasoning.items()), prints[i.id])
        whole.update(repr(record).encode())
    return whole.hexdigest()


def load_checked_split(folder: Path, split: str, check: ItemCheck | None = None) -> tuple[list[AnnotatedImage], tuple]:
    """(items of one split, warnings), for jobs that only judge.   Raises: DataError as `load_run_data`."""
    findings, prints = Findings(), dict[str, str]()
    items = list(_decoded(folder, (split,), check, findings, prints))
    if not items:
        items = list(read_annotations(folder, split=split))  # raises: says that it is empty
    twin_findings(items, prints, findings)
    held_out_findings(items, split, findings)
    return items, findings.lines()


def require_pairs(data: RunData) -> None:
    """Refuse to train on pairs that are not there.   Raises: DataError: how many groups, pairs and ties, what to do."""
    if data.pairs:
        return
    groups = list(group_items(data.train).values())
    singles = sum(len(members) == 1 for members in groups)
    ties = sum(1 for members in groups for a, b in combinations(members, 2) for d in a.scores if d in b.scores)
    raise DataError(
        f"{data.folder}: wanted at least one same-prompt pair with different scores in split 'train', got none:"
        f" {len(data.train)} images in {len(groups)} groups ({singles} of one image), {ties} same-prompt pairs, all"
        " tied; give each prompt two images or more with different scores, or train with jobs/risd.py, which needs"
        " items only"
    )


def _decoded(
    folder: Path, splits: tuple[str, ...], check: ItemCheck | None, findings: Findings, prints: dict[str, str]
) -> Iterator[AnnotatedImage]:
    """Records of some splits with what is known of their images: from the index, where that holds, else decoded, noted
    and fingerprinted; the pixels are dropped again."""
    with collector_off():
        records = [(where, item) for where, item in located_annotations(folder) if item.split in splits]
        index = ImageIndex(annotation_file(folder).parent)
        indexed = [index.about(item.image) for _, item in records]
    new = [n for n, row in enumerate(indexed) if row is None]
    heads = {n: _glance(records[n][1].image, records[n][0]) for n in new} if len(new) > FEW else {}
    chosen = (
        {new[k] for k in sample_to_decode([h * w for h, w, _ in heads.values()], DECODE_PIXELS)} if heads else {*new}
    )
    sampled = len(chosen) < len(new)
    if sampled:
        findings.add(
            f"images: {len(new)} are too many to decode before a run, an even sample of {len(chosen)} was decoded"
            f" and the headers of the rest were read; python jobs/data/index.py {folder} decodes all of them once, for"
            " every later start"
        )
    for n, (where, item) in enumerate(records):
        row = indexed[n]
        if row is not None:
            if row.error is not None:
                raise DataError(f"{where}: {row.error}")
            height, width, print_, head_print, notes = row.height, row.width, row.content_hash, row.head_hash, row.notes
        else:
            height, width, print_, notes = _look(item.image, where) if n in chosen else (*heads[n], ())
            head_print = heads[n][2] if heads else ""
        # one kind of fingerprint for the whole set: pixels where those of all are known, else size and beginning of the
        # file
        prints[item.id] = head_print if sampled else print_
        for note in notes:
            findings.add(f"images: {note}", item.id)
        reason = check(item, height, width) if check is not None else None
        if reason is not None:
            raise DataError(f"{where}: item {item.id!r}: {reason}")
        yield item


def _glance(path: Path, where: str) -> tuple[int, int, str]:
    try:
        return glance(path)
    except ImageTooLarge as error:
        raise ImageTooLarge(f"{where}: {error}") from error
    except (DataError, OSError) as error:
        raise DataError(f"{where}: {error}") from error


def _look(path: Path, where: str) -> tuple[int, int, str, tuple[str, ...]]:
    """(height, width, 32 hex digits of the pixels, notes) of an image file."""
    try:
        image = decode(io.BytesIO(path.read_bytes()), str(path), MAX_PIXELS)
    except ImageTooLarge as error:
        raise ImageTooLarge(f"{where}: {error}") from error
    except (DataError, OSError) as error:
        raise DataError(f"{where}: {error}") from error
    height, width = image.pixels.shape[:2]
    return height, width, content_hash(image.pixels), image.notes
