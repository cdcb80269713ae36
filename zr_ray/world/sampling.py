"""Random prompts and candidates of the built-in rubric world, deterministic by the generator passed in. SIMULATED.

The four dimensions are drawn independently of one another. Two couplings cannot be avoided: an overlap needs two
objects, so a candidate with a missing object draws another defect of plausibility instead; and a stack cannot float and
overlap at once. Alignment and plausibility have discrete penalties, so candidates of one group would often tie exactly;
a tie is drawn a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zr_ray.world.prompts import is_held_out
from zr_ray.world.reasoning import reasoning_chains
from zr_ray.world.scene import (
    AESTHETICS,
    COLORS,
    LEVELS,
    MIN_LEVEL,
    REALISM,
    RELATIONS,
    SHAPES,
    SIZES,
    Asked,
    Layout,
    Request,
    Scene,
    place,
)
from zr_ray.world.truth import PENALTY, true_scores

PAIR_SHARE = 0.75
"""Share of prompts with two objects."""


@dataclass(frozen=True)
class Candidate:
    """One simulated candidate image for a prompt; `render(scene)` gives its pixels."""

    request: Request
    scene: Scene
    truth: dict[str, float]
    """Dimension -> true score in [1, 5]."""
    reasoning: dict[str, str]
    """Dimension -> oracle chain."""

    @property
    def prompt(self) -> str:
        return self.request.prompt


@dataclass(frozen=True)
class _Faults:
    """Alignment draw: what stands in the picture instead of what was asked."""

    first: Asked | None
    second: Asked | None
    extra: Asked | None
    relation: str


def _pick(rng: np.random.Generator, options: tuple[str, ...], *excluded: str) -> str:
    left = [option for option in options if option not in excluded]
    return left[int(rng.random() * len(left))]


def sample_request(rng: np.random.Generator) -> Request:
    """A prompt. Two asked-for objects differ in shape and in color, so that each can be told from the other."""
    first = Asked(_pick(rng, SIZES), _pick(rng, COLORS), _pick(rng, SHAPES))
    if rng.random() >= PAIR_SHARE:
        return Request(first)
    second = Asked(_pick(rng, SIZES), _pick(rng, COLORS, first.color), _pick(rng, SHAPES, first.shape))
    return Request(first, second, _pick(rng, RELATIONS))


def _draw_faults(rng: np.random.Generator, request: Request) -> tuple[_Faults, float]:
    """What stands in the picture, with 0 to 3 alignment faults, and their penalty.

    Beside a second object, none loses color and shape at once, and neither takes the other's: each can still be
    recognized.
    """
    pair = request.second is not None
    parts = [request.first, request.second]
    colors, shapes = [o.color for o in parts if o], [o.shape for o in parts if o]
    relation, extra, penalty = request.relation, None, 0.0
    count = int(np.searchsorted((0.22, 0.55, 0.85), rng.random(), side="right"))
    options = [(part, i) for i in range(1 + pair) for part in ("size", "color", "shape")] + [("extra", 0)]
    options += [("relation", 0), ("missing", 0), ("missing", 1)] if pair else []
    for index in rng.permutation(len(options))[:count].tolist():
        fault, which = options[index]
        target = parts[which]
        if fault == "missing":
            if (
                None in parts
                or extra is not None
                or relation != request.relation
                or parts != [request.first, request.second]
            ):
                continue
            parts[which] = None
        elif fault == "relation":
            if None in parts:
                continue
            relation = _pick(rng, RELATIONS, request.relation)
        elif fault == "extra":
            if None in parts:
                continue
            extra = Asked(_pick(rng, SIZES[:1]), _pick(rng, COLORS, *colors), _pick(rng, SHAPES, *shapes))
        elif target is None:
            continue
        elif fault == "size":
            parts[which] = Asked(_pick(rng, SIZES, target.size), target.color, target.shape)
        elif fault == "color":
            if pair and target.shape != shapes[which]:
                continue
            parts[which] = Asked(target.size, _pick(rng, COLORS, *colors), target.shape)
        else:
            if pair and target.color != colors[which]:
                continue
            parts[which] = Asked(target.size, target.color, _pick(rng, SHAPES, *shapes))
        penalty += PENALTY[fault]
    return _Faults(parts[0], parts[1], extra, relation), penalty


def _draw_levels(rng: np.random.Generator, names: tuple[str, ...], absent: float) -> dict[str, float]:
    """Level per degradation; each is absent with probability `absent`, else uniform in [MIN_LEVEL, 1]."""
    gates, values = rng.random((2, len(names))).tolist()
    return {
        name: 0.0 if gate < absent else MIN_LEVEL + (1 - MIN_LEVEL) * value
        for name, gate, value in zip(names, gates, values, strict=True)
    }


def _draw_physics(rng: np.random.Generator, faults: _Faults) -> tuple[tuple[int, bool, bool], float]:
    """(floating level, shadow wrong, overlap) and their penalty."""
    pair = faults.first is not None and faults.second is not None
    stack = pair and faults.relation in ("on", "under")
    level, shadow, contact = rng.random(3).tolist()
    supported = 0.5 if pair else 0.36  # without a possible overlap, floating makes up for its share
    floating = 0 if level < supported else 1 + (level < (1 + supported) / 2)
    overlap = pair and contact < 0.35
    if stack and floating and overlap:
        floating, overlap = (floating, False) if contact < 0.175 else (0, True)
    penalty = PENALTY["floating"][floating] + PENALTY["shadow"] * (shadow < 0.42) + PENALTY["overlap"] * overlap
    return (floating, shadow < 0.42, overlap), penalty


def _draw_untied(taken: list[float], draw):
    """`draw()` gives (value, penalty); it is called a second time if its score is already taken. Returns the value."""
    value, penalty = draw()
    if max(1.0, 5.0 - penalty) in taken:
        value, penalty = draw()
    taken.append(max(1.0, 5.0 - penalty))
    return value


def sample_group(rng: np.random.Generator, candidates: int = 4) -> list[Candidate]:
    """One prompt with its candidates. Raises: ValueError if candidates is below 1."""
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    request = sample_request(rng)
    alignments: list[float] = []
    plausibilities: list[float] = []
    group = []
    for _ in range(candidates):
        faults = _draw_untied(alignments, lambda: _draw_faults(rng, request))
        levels = _draw_levels(rng, REALISM, 0.35) | _draw_levels(rng, AESTHETICS, 0.5)
        floating, shadow_wrong, overlap = _draw_untied(plausibilities, lambda f=faults: _draw_physics(rng, f))
        free = rng.random(6).tolist()
        layout = Layout(
            ground=41 + (free[0] < 0.5),
            offset=int(free[1] * 13) - 6,
            gap=5 + (free[2] < 0.5),
            extra_side="left" if free[3] < 0.5 else "right",
            floater=int(free[4] < 0.5),
        )
        scene = place(
            faults.first,
            faults.second,
            faults.extra,
            faults.relation,
            light="left" if free[5] < 0.5 else "right",
            shadow_wrong=shadow_wrong,
            floating=floating,
            overlap=overlap,
            levels={name: levels[name] for name in LEVELS},
            layout=layout,
            seed=int(rng.integers(2**62)),
        )
        group.append(Candidate(request, scene, true_scores(request, scene), reasoning_chains(request, scene)))
    return group


def sample_known_group(rng: np.random.Generator, candidates: int = 4) -> list[Candidate]:
    """`sample_group` for a training set: drawn again while its prompt is held out (`prompts.is_held_out`)."""
    group = sample_group(rng, candidates)
    while is_held_out(group[0].prompt):
        group = sample_group(rng, candidates)
    return group


def sample_candidates(seed: int, candidates: int = 4) -> Iterator[Candidate]:
    """Endless stream of candidates, group after group; the same seed gives the same stream."""
    rng = np.random.default_rng((seed, 0x57AEA))
    while True:
        yield from sample_group(rng, candidates)
