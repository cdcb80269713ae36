"""Generated images as annotated data, in the on-disk format: `origin` is "generated". SIMULATED annotators, never human
data.

A renderer knows the truth of its scenes; of a generated image only a measurement can stand in for it. Here that is the
verifier:
alignment and plausibility from what it reads, realism and aesthetics from the degradations it measures, all four 1
where it recognizes no object. `truth` of a record is this measurement. On top come the same simulated annotators as
over rendered scenes.
Left out on purpose: reasoning chains (the verifier does not say which of two readings of a broken object an annotator
would name).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.data.annotations import write_annotations
from zr_ray.data.checks import SPLITS
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.world.annotators import AnnotatorPool
from zr_ray.world.build import NOTE_FILE
from zr_ray.world.verifier.scores import verify

CHUNK = 64
"""Groups generated together."""


@dataclass(frozen=True)
class Setting:
    """How one image is sampled."""

    steps: int
    """Sampling steps; one to three leave blobs."""
    guidance_scale: float
    """w of pos + w (pos - neg); without it the text is followed less."""


SETTINGS = (Setting(8, 1.5), Setting(8, 1.5), Setting(8, 0.0), Setting(4, 1.5), Setting(2, 1.5), Setting(1, 1.5))
"""Drawn from for every image: a third as good as the shipped generator gets, the others with less text or broken, down
to blobs. Ours."""

Sampler = Callable[[Sequence[str], Setting, int], np.ndarray]
"""(N prompts, setting, seed) -> [N, 64, 64, 3] uint8."""


def write_generated(
    root: Path | str,
    prompts: Mapping[str, Sequence[str]],
    sample: Sampler,
    *,
    candidates: int = 4,
    seed: int = 0,
    settings: Sequence[Setting] = SETTINGS,
    note: Mapping[str, object] | None = None,
) -> int:
    """Generate, label and write; the annotation file comes last and atomically: if it is there, all is.

    Train items carry one label per dimension from the annotation workflow, dev and test items five annotators' scores,
    as in `build.write_world`. Args: prompts: split -> one prompt per group. candidates: images per prompt, at least 2.
    note: added to `world.json`, for example which generator. Returns: number of images.
    Raises: DataError on an unknown split, no prompt at all, fewer than 2 candidates, a negative seed, or a prompt
    foreign to the world."""
    if not set(prompts) <= set(SPLITS) or not any(prompts.values()) or candidates < 2 or seed < 0:
        counts = {split: len(texts) for split, texts in prompts.items()}
        raise DataError(
            f"wanted prompts for some of {', '.join(SPLITS)}, at least 2 candidates, a seed from 0, got {counts},"
            f" {candidates}, {seed}; correct them"
        )
    root = Path(root).absolute()
    (root / "images").mkdir(parents=True, exist_ok=True)
    facts = {
        "simulated": True,
        "source": "images by a generator, scores by zr_ray's verifier, annotators simulated",
        "groups": {split: len(texts) for split, texts in prompts.items()},
        "candidates": candidates,
        "seed": seed,
        "settings": [asdict(setting) for setting in settings],
    }
    (root / NOTE_FILE).write_text(json.dumps(facts | dict(note or {}), indent=1) + "\n")
    pool = AnnotatorPool(seed)
    write_annotations(
        root,
        (
            item
            for split, texts in prompts.items()
            for item in _items(root, pool, split, texts, sample, candidates, seed, settings)
        ),
    )
    return candidates * sum(map(len, prompts.values()))


def _items(
    root: Path,
    pool: AnnotatorPool,
    split: str,
    prompts: Sequence[str],
    sample: Sampler,
    candidates: int,
    seed: int,
    settings: Sequence[Setting],
) -> Iterator[AnnotatedImage]:
    """Generate a split's images chunk after chunk, save them and yield their records."""
    (root / "images" / split).mkdir(exist_ok=True)
    stream = SPLITS.index(split)
    for start in range(0, len(prompts), CHUNK):
        texts = prompts[start : start + CHUNK]
        images = _sampled(texts, sample, candidates, settings, (seed, 0x6E4, stream, start, 1))
        for offset, prompt in enumerate(texts):
            number = start + offset
            truths = [verify(image, prompt) for image in images[offset]]
            rng = np.random.default_rng((seed, 0x6E4, stream, number, 2))
            scores = pool.training_scores(rng, truths) if split == "train" else pool.test_scores(rng, truths)
            for index, (truth, given) in enumerate(zip(truths, scores, strict=True)):
                path = root / "images" / split / f"{number:06d}-{index}.png"
                Image.fromarray(images[offset, index]).save(path, compress_level=1)
                if given:
                    group = f"{split}-generated-{number:06d}"
                    yield AnnotatedImage(f"{group}-{index}", group, split, prompt, path, given, "generated", truth)


def _sampled(
    texts: Sequence[str], sample: Sampler, candidates: int, settings: Sequence[Setting], seed: tuple[int, ...]
) -> np.ndarray:
    """[groups, candidates, 64, 64, 3] uint8; every image has a setting of its own, images of one setting are sampled
    together."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(settings), (len(texts), candidates))
    seeds = rng.integers(0, 2**31, len(settings)).tolist()
    images = np.zeros((len(texts), candidates, 64, 64, 3), np.uint8)
    for index, setting in enumerate(settings):
        groups, places = np.nonzero(chosen == index)
        if len(groups):
            images[groups, places] = sample([texts[group] for group in groups], setting, seeds[index])
    return images
