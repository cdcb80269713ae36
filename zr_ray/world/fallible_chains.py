"""Reasoning chains of a fallible annotator: the oracle's, with a stated share of its findings wrong.

RewardDance learns chains that a stronger annotator wrote, and no annotator is always right. A finding is a word that
says something about the picture (a size, color, shape, relation, level, side, verdict, or yes and no); a wrong one is
another word of its kind, so that chains keep their form. Findings go wrong independently of one another and of the
score, which stays the annotators': a verdict need not follow from what was named before it.
Left out on purpose: what makes an annotator err more on some pictures than on others.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from zr_ray.data.annotations import read_annotations
from zr_ray.data.copies import copy_changed
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.world.reasoning import FLOAT_WORDS, LEVEL_WORDS
from zr_ray.world.scene import COLORS, RELATIONS, SHAPES, SIZES

KINDS: tuple[tuple[str, ...], ...] = (SIZES, COLORS, SHAPES, ("ok", "bad"), ("yes", "no"))
"""Words whose kind they tell themselves."""
AFTER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("noise", "blur", "blocks", "clash", "clutter", "dim", "crop"), LEVEL_WORDS),
    **dict.fromkeys(("light", "shadow"), ("left", "right")),
    "relation": RELATIONS,
    "float": FLOAT_WORDS,
}
"""Word -> what can follow it; words such as `none` and `left` are of several kinds."""


def kind_of(before: str, word: str) -> tuple[str, ...]:
    """All words that could stand in a finding's place; empty if `word` is no finding. before: the word in front."""
    kinds = (AFTER[before],) if before in AFTER else KINDS
    return next((kind for kind in kinds if word in kind), ())


def fallible_chain(chain: str, errors: float, rng: np.random.Generator) -> tuple[str, int, int]:
    """(chain, wrong findings, findings): each finding wrong with probability `errors`, the words around it as they
    were."""
    words, made, wrong, findings = chain.split(" "), [], 0, 0
    for before, word in zip(["", *words], words, strict=False):
        others = [other for other in kind_of(before, word) if other != word]
        findings += bool(others)
        if others and rng.random() < errors:
            word, wrong = others[int(rng.integers(len(others)))], wrong + 1
        made.append(word)
    return " ".join(made), wrong, findings


def write_fallible_chains(source: Path, target: Path, errors: float, seed: int = 0) -> tuple[int, int]:
    """Copy a data set of the simulated world with errors in the chains of its training split; a chain's errors depend
    on item, dimension and seed.   Returns: (wrong findings, findings) of the training split.

    Raises: DataError if the source breaks the format or has no chains."""
    counts = [0, 0]

    def changed(item: AnnotatedImage) -> AnnotatedImage:
        chains = {}
        for dimension, chain in item.reasoning.items():
            rng = np.random.default_rng((seed, zlib.crc32(f"{item.id}/{dimension}".encode())))
            chains[dimension], wrong, findings = fallible_chain(chain, errors, rng)
            counts[0], counts[1] = counts[0] + wrong, counts[1] + findings
        return replace(item, reasoning=chains)

    for item in read_annotations(source, split="train"):
        changed(item)
    if not counts[1]:
        raise DataError(
            f"{source}: wanted reasoning chains of the built-in world in split 'train', found none; leave rows with"
            " chain_errors out"
        )
    told = (counts[0], counts[1])
    copy_changed(source, target, changed)
    return told
