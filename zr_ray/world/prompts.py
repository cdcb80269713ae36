"""All prompts of the built-in world, which of them are held out from every training set, and prompts that are almost
right.

The world has 48 prompts of one object and 5,760 of two; one in ten of the latter is held out (`is_held_out`).
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import product

import numpy as np

from zr_ray.world.scene import COLORS, RELATIONS, SHAPES, SIZES, Asked, Request

_OPTIONS = {"size": SIZES, "color": COLORS, "shape": SHAPES}
_TURNED = {"left": "right", "right": "left", "on": "under", "under": "on"}


def is_held_out(prompt: str) -> bool:
    """Whether no training set, of generator or judge, holds this prompt: every tenth one with two objects. Single
    objects are all seen."""
    return len(prompt.split()) > 3 and zlib.crc32(prompt.encode()) % 10 == 0


def in_half(prompt: str, half: int) -> bool:
    """Whether a prompt belongs to half 0 or 1 of the world, for judges that must not share training prompts; -1 is the
    whole world."""
    return half < 0 or zlib.crc32(prompt.encode()) // 10 % 2 == half


def all_requests() -> list[Request]:
    """Every request of the world, single objects first; two objects differ in color and in shape."""
    singles = [Asked(*parts) for parts in product(SIZES, COLORS, SHAPES)]
    pairs = [(a, b) for a in singles for b in singles if a.color != b.color and a.shape != b.shape]
    return [Request(a) for a in singles] + [Request(a, b, relation) for a, b in pairs for relation in RELATIONS]


def known_prompts() -> list[str]:
    """The prompts that may be trained on, some 5,200, in a fixed order."""
    return [request.prompt for request in all_requests() if not is_held_out(request.prompt)]


def held_out_prompts() -> list[str]:
    """The two-object prompts that nothing is trained on, some 580, in a fixed order."""
    return [request.prompt for request in all_requests() if is_held_out(request.prompt)]


def edited(request: Request, rng: np.random.Generator) -> Request:
    """A request that is almost this one: an attribute changed, the two objects swapped, or the relation turned or
    replaced.

    Of two objects, each of the four kinds (attribute of the first, of the second, swap, relation) has the same chance.
    The result keeps the world's rule that two objects differ in color and shape, and never equals the original."""
    kinds = ("first", "second", "swap", "relation") if request.second is not None else ("first",)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "swap":
        return replace(request, first=request.second, second=request.first)
    if kind == "relation":
        if rng.random() < 0.5:
            return replace(request, relation=_TURNED[request.relation])
        return replace(request, relation=_other(rng, RELATIONS, request.relation))
    target, beside = (request.first, request.second) if kind == "first" else (request.second, request.first)
    part = ("size", "color", "shape")[int(rng.integers(3))]
    taken = [getattr(target, part)] + ([getattr(beside, part)] if beside is not None and part != "size" else [])
    return replace(request, **{kind: replace(target, **{part: _other(rng, _OPTIONS[part], *taken)})})


def _other(rng: np.random.Generator, options: tuple[str, ...], *excluded: str) -> str:
    left = [option for option in options if option not in excluded]
    return left[int(rng.integers(len(left)))]
