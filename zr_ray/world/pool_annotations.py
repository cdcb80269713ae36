"""A pool of generated images as annotated data, in the on-disk format: `origin` is "generated". SIMULATED annotators.

`truth` of a record is the verifier's score (see `generated.py`), annotators are simulated on top of it. Some groups are
asked again under an edited prompt (`prompts.edited`): the same images, an almost right request, scored in alignment
only, the cheapest lesson in comparing image and prompt. Training records carry the chain of the verifier's reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.data.annotations import write_annotations
from zr_ray.data.checks import SPLITS
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.annotators import AnnotatorPool
from zr_ray.world.build import NOTE_FILE
from zr_ray.world.image_pool import ImagePool, scores_of
from zr_ray.world.prompts import edited, in_half, is_held_out
from zr_ray.world.reading_chains import reading_chains
from zr_ray.world.scene import Request
from zr_ray.world.verifier.scores import parse_prompt


@dataclass(frozen=True)
class Share:
    """What is taken of a pool for one split."""

    pool: ImagePool
    groups: int
    """Prompts, drawn without replacement."""
    candidates: int = 4
    """Images per prompt, at least 2; prompts with fewer in the pool are passed over."""
    edits: float = 0.0
    """Edited prompts per prompt, on average: each is a further group with the same images."""
    half: int = -1
    """Prompts of one half only (`prompts.in_half`); -1 all."""


def write_pool_annotations(root: Path | str, shares: Mapping[str, Share], *, seed: int = 0) -> int:
    """Write images and annotations, the latter last and atomically; the same pools and arguments give the same bytes.

    Args: shares: split -> what is taken.   Returns: number of records.   Raises: DataError on an unknown split or a
    pool with too few prompts of enough images."""
    if not shares or not set(shares) <= set(SPLITS):
        raise DataError(f"wanted shares for some of {', '.join(SPLITS)}, got {list(shares)}; correct them")
    root = Path(root).absolute()
    (root / "images").mkdir(parents=True, exist_ok=True)
    counts = {split: {"groups": s.groups, "candidates": s.candidates, "edits": s.edits} for split, s in shares.items()}
    facts = {"simulated": True, "source": "images by a generator, scores by zr_ray's verifier, annotators simulated"}
    (root / NOTE_FILE).write_text(json.dumps(facts | {"taken": counts, "seed": seed}, indent=1) + "\n")
    annotators, written = AnnotatorPool(seed), 0

    def items() -> Iterator[AnnotatedImage]:
        nonlocal written
        for split, share in shares.items():
            for item in _items(root, annotators, split, share, seed):
                written += 1
                yield item

    write_annotations(root, items())
    return written


def _items(root: Path, annotators: AnnotatorPool, split: str, share: Share, seed: int) -> Iterator[AnnotatedImage]:
    (root / "images" / split).mkdir(exist_ok=True)
    pool, stream = share.pool, SPLITS.index(split)
    rng = np.random.default_rng((seed, 0x9A01, stream))
    members: dict[int, list[int]] = {}
    for index, prompt in enumerate(pool.prompt.tolist()):
        members.setdefault(prompt, []).append(index)
    usable = [
        p for p in sorted(members) if len(members[p]) >= share.candidates and in_half(pool.prompts[p], share.half)
    ]
    if len(usable) < share.groups:
        raise DataError(
            f"wanted {share.groups} prompts with {share.candidates} images for split {split}, the pool has"
            f" {len(usable)}; take fewer, or make more of it (jobs/data/make_image_pool.py)"
        )
    for number, prompt in enumerate(rng.permutation(usable)[: share.groups].tolist()):
        chosen = sorted(rng.permutation(members[prompt])[: share.candidates].tolist())
        paths = [root / "images" / split / f"{number:06d}-{i}.png" for i in range(len(chosen))]
        for index, path in zip(chosen, paths, strict=True):
            Image.fromarray(np.asarray(pool.images[index])).save(path, compress_level=1)
        own = parse_prompt(pool.prompts[prompt])
        asked = [("", own, DIMENSIONS)]
        for extra in range(int(share.edits + rng.random())):
            request = edited(own, rng)
            if split != "train" or not is_held_out(request.prompt):
                asked.append((f"-edit{extra}", request, DIMENSIONS[:1]))
        for suffix, request, dimensions in asked:
            group = f"{split}-generated-{number:06d}{suffix}"
            yield from _records(annotators, split, group, request, dimensions, pool, chosen, paths, rng)


def _records(
    annotators: AnnotatorPool,
    split: str,
    group: str,
    request: Request,
    dimensions: tuple[str, ...],
    pool: ImagePool,
    chosen: list[int],
    paths: list[Path],
    rng: np.random.Generator,
) -> Iterator[AnnotatedImage]:
    """The records of one group: its images under one request, scored in some dimensions."""
    readings = [pool.reading(index) for index in chosen]
    truths = [dict(zip(DIMENSIONS, scores_of(reading, request.prompt), strict=True)) for reading in readings]
    given = annotators.training_scores(rng, truths) if split == "train" else annotators.test_scores(rng, truths)
    for i, (truth, scores, reading) in enumerate(zip(truths, given, readings, strict=True)):
        kept = {d: scores[d] for d in dimensions if d in scores}
        if kept:
            chains = {d: text for d, text in reading_chains(request, reading).items() if d in kept}
            reasoning = chains if split == "train" else {}
            known = {d: truth[d] for d in kept}
            yield AnnotatedImage(
                f"{group}-{i}", group, split, request.prompt, paths[i], kept, "generated", known, reasoning
            )
