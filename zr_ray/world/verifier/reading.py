"""The verifier: reads any 64 x 64 picture by classical image analysis, without learning; `verifier_scores` puts it on
the rubric.

    verifier_backdrop     sun, brightness, sky, ground line, noise      verifier_objects      what stands where, by
    template least squares
    verifier_physics      support, contact, shadows                     verifier_degradation  blur, blocks, clutter, ...
    against a redrawing

No learned reward can move it, so it is the control beside every reward curve. It knows the world and nothing else: on a
picture that is no scene it finds nothing, and every score is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from zr_ray.world.scene import COLORS, OVERLAP_PIXELS, SIZE, SceneObject
from zr_ray.world.verifier.backdrop import Backdrop, read_backdrop
from zr_ray.world.verifier.degradation import (
    block_means,
    blur_of_sun,
    deblock,
    draw,
    fit_blur_and_blocks,
    levels,
    soften,
)
from zr_ray.world.verifier.objects import MIN_FIT, MIN_GAIN, Sheet, fit_objects, pad
from zr_ray.world.verifier.physics import overlapping, read_shadows, relation, seen_shade, supports
from zr_ray.world.verifier.search import propose
from zr_ray.world.verifier.templates import BLURS, CORE, MARGIN, Found, coverage, covered, paint

ROUND_FITS = (0.8, 0.6, 0.3)
"""Least fit per round of proposals in the first pass: sure objects first, those that interpenetrate others once these
are explained."""
SOFT = 2
"""Index into BLURS: the least blur of templates where the outline cannot be trusted, as in the first pass and between
overlapping objects."""
MIN_CHANGE = 30.0
"""Gray levels, summed over channels, by which the middle of a proposal must differ from what is already explained."""
SWEEPS = 2
"""Most rounds of the second pass; the second one only where objects touch and the first changed something."""
SUN_NOISE = 3.0
"""Gray levels of noise up to which the sun alone tells blur and blocks well enough for the second pass."""
MIN_LIKENESS = 0.6
"""An object that resembles its redrawing less is not recognized: 99 % of correctly read rendered objects, however
degraded, reach 0.68, colored blobs on a proper backdrop rarely 0.6. Nothing is recognized either where the last of
BLURS fits best."""


@dataclass(frozen=True)
class SeenObject(SceneObject):
    """One object as it is read from pixels."""

    fit: float = 1.0
    """How much the picture resembles the redrawn object, at most 1; noise, blur and blocks do not lower it."""
    grounded: bool = True
    """Whether it stands over the ground, where it must cast a shadow, rather than over another object."""


@dataclass(frozen=True)
class SceneReading:
    """What the verifier reads from a picture."""

    objects: tuple[SeenObject, ...]
    """Objects from left to right; empty when nothing recognizable is there."""
    relations: dict[tuple[int, int], str]
    """(i, j) -> where object i is, seen from object j, one of RELATIONS."""
    light: str
    """Corner of the sun, "left" or "right"; empty when no sun is seen."""
    ground: int | None
    """First row of the ground; None when there is no ground line."""
    overlap: bool
    """Whether two objects interpenetrate."""
    levels: dict[str, float]
    """LEVELS -> [0, 1], 0 when absent."""

    @property
    def floating(self) -> int:
        """Highest floating level, an index into FLOAT_GAP."""
        return max((item.floating for item in self.objects), default=0)

    @property
    def shadow_wrong(self) -> bool:
        """Whether a shadow falls towards the sun, or an object over the ground casts none, or there is no sun to cast
        it."""
        return not self.light or any(item.shadow in ("", self.light) for item in self.objects if item.grounded)


def read_scene(image: np.ndarray) -> SceneReading:
    """Read a picture. image: [64, 64, 3] uint8 RGB.

    Two passes: objects on the plain backdrop; then, with blur, blocks and shadows known from a redrawing, every object
    again.
    Raises: ValueError for another shape or type."""
    if image.shape != (SIZE, SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 [{SIZE}, {SIZE}, 3], got {image.dtype} {list(image.shape)}; resize or convert it"
            " first"
        )
    raw = image.astype(np.float32)
    backdrop = read_backdrop(raw)
    bright = raw * np.float32(1 / backdrop.gain)
    noise = backdrop.noise / backdrop.gain
    blur, weight = blur_of_sun(bright, backdrop)
    sharp, seen_blur = deblock(bright, weight, noise, blur)
    if backdrop.ground is None:
        return _empty(bright, backdrop, blur, weight)
    found = _find(sharp, draw(backdrop, seen_shade(sharp, backdrop), []), seen_blur, noise)
    _, shade = read_shadows(sharp, backdrop, found, [over for over, _ in supports(found, backdrop.ground)], BLURS[blur])
    if noise > SUN_NOISE or not backdrop.light:
        blur, weight = fit_blur_and_blocks(bright, draw(backdrop, shade, found), blur)
        sharp, seen_blur = deblock(bright, weight, noise, blur)
    found = _again(sharp, backdrop, shade, found, seen_blur)
    stands = supports(found, backdrop.ground)
    sides, shade = read_shadows(sharp, backdrop, found, [over for over, _ in stands], BLURS[blur])
    drawn = draw(backdrop, shade, found)
    blur, weight = fit_blur_and_blocks(bright, drawn, blur)
    soft = soften(drawn, BLURS[blur])
    model = soft + np.float32(weight) * (block_means(soft) - soft)
    objects = tuple(
        SeenObject(
            f.size,
            COLORS[f.color],
            f.shape,
            f.x,
            f.y + f.half,
            level,
            side,
            _likeness(bright, model, f, found, noise),
            over,
        )
        for f, (over, level), side in zip(found, stands, sides, strict=True)
    )
    known = [i for i, item in enumerate(objects) if item.fit >= MIN_LIKENESS and blur < len(BLURS) - 1]
    if not known:
        return _empty(bright, backdrop, blur, weight)
    pairs = list(permutations(range(len(known)), 2))
    return SceneReading(
        tuple(objects[i] for i in known),
        {(i, j): relation(found[known[i]], found[known[j]]) for i, j in pairs},
        backdrop.light,
        backdrop.ground,
        any(overlapping(found[known[i]], found[known[j]]) for i, j in pairs),
        levels(bright, model, backdrop, BLURS[blur], weight, found),
    )


def _empty(bright: np.ndarray, backdrop: Backdrop, blur: int, weight: float) -> SceneReading:
    """The reading of a picture in which no object is recognized."""
    model = soften(draw(backdrop, None, []), BLURS[blur])
    return SceneReading(
        (), {}, backdrop.light, backdrop.ground, False, levels(bright, model, backdrop, BLURS[blur], weight, [])
    )


def _likeness(bright: np.ndarray, model: np.ndarray, item: Found, found: list[Found], noise: float) -> float:
    """1 minus the share of an object's contrast that the redrawing leaves unexplained in and around it, beyond noise.

    Where objects interpenetrate, stripes are redrawn as a mean; these pixels do not count."""
    reach = item.half + 2
    box = slice(max(0, item.y - reach), item.y + reach + 1), slice(max(0, item.x - reach), item.x + reach + 1)
    trust = np.ones(model[box].shape[:2], bool)
    for other in found:
        if other is not item and _close(item, other):
            trust &= ~(covered(item) & covered(other))[box]
    seen = model[box][trust]
    left = float(np.square(bright[box][trust] - seen).sum()) - 3 * noise**2 * len(seen)
    return 1 - max(0.0, left) / max(1.0, float(np.square(seen - seen.mean(0)).sum()))


_INSIDE = pad(np.ones((SIZE, SIZE), np.float32))


def _find(sharp: np.ndarray, background: np.ndarray, blur: int, noise: float) -> list[Found]:
    """First pass: proposals are fitted, then accepted in order of what they explain, each over those before it.

    Later rounds accept less sure ones. A fit is redone only when it is its turn and something was accepted near it
    since."""
    found: list[Found] = []
    sheet = Sheet(pad(sharp), pad(background), _INSIDE.copy())
    explained, blur, places = sheet.background[CORE], max(blur, SOFT), None
    fits: dict[tuple[int, int], Found | None] = {}  # place -> fit, None where the place is done with
    stale: set[tuple[int, int]] = set()
    for least in ROUND_FITS:
        if places is None:
            places = propose(sharp, explained, noise)
            new = [place for place in places if not fits.get(place) and _unexplained(sharp, explained, *place)]
            fits.update(zip(new, fit_objects(sheet, new, blur, 2, coarse=True), strict=True))
        while good := {
            place: item for place, item in fits.items() if item and item.fit >= least and item.gain >= MIN_GAIN
        }:
            place = max(good, key=lambda place: good[place].gain)
            best = good[place]
            if place in stale:
                stale.discard(place)
                (fits[place],) = fit_objects(sheet, [(best.x, best.y)], blur, 2, coarse=True)
                if any(_same_place(fits[place], other) for other in found):
                    fits[place] = None
                continue
            found.append(best)
            places = None
            paint(explained, best.kind, best.color, best.x, best.y)
            _fade(sheet.weight, best)
            for at, item in fits.items():
                if item and _same_place(item, best):
                    fits[at] = None
                elif item and _close(item, best):
                    stale.add(at)
    return found


def _unexplained(sharp: np.ndarray, explained: np.ndarray, x: int, y: int) -> bool:
    spot = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
    return float(np.abs((sharp[spot] - explained[spot]).mean((0, 1))).sum()) >= MIN_CHANGE


def _again(sharp: np.ndarray, backdrop: Backdrop, shade: np.ndarray, found: list[Found], blur: int) -> list[Found]:
    """Second pass: every object fitted once more over the redrawing without it, with templates of the measured blur.

    What fits worst comes first and goes at once if the others leave nothing for it: pieces of an object that was read a
    pixel off, and one that was read across two, must not hold these off their places. Returns the rest from left to
    right."""
    padded, kept = pad(sharp), list(found)
    for _ in range(SWEEPS):
        before = {(item.kind, item.color, item.x, item.y) for item in kept}
        for item in sorted(kept, key=lambda item: item.fit):
            others = [other for other in kept if other is not item]
            near = tuple(other for other in others if _close(item, other))
            sheet = Sheet(padded, pad(soften(draw(backdrop, shade, others), BLURS[blur])), _INSIDE)
            (new,) = fit_objects(sheet, [(item.x, item.y)], blur, 1, met=near)
            good = new.fit >= MIN_FIT and new.gain >= MIN_GAIN and not any(_same_place(new, other) for other in others)
            kept = others + [new] if good else others
        touching = any(_close(one, other) for one, other in combinations(kept, 2))
        if not touching or before == {(item.kind, item.color, item.x, item.y) for item in kept}:
            break
    return sorted(kept, key=lambda item: item.x)


def _close(first: Found, second: Found) -> bool:
    """Whether the boxes of two objects nearly touch."""
    return max(abs(first.x - second.x), abs(first.y - second.y)) <= first.half + second.half


def _same_place(first: Found, second: Found) -> bool:
    """Whether two fits must be one object: they would interpenetrate clearly deeper than the world's objects do."""
    apart = max(abs(first.x - second.x), abs(first.y - second.y))
    return first.half + second.half + 1 - apart > OVERLAP_PIXELS + 2


def _fade(weight: np.ndarray, other: Found) -> None:
    """Pixels of an interpenetrating object say little about this one."""
    half = other.half
    window = weight[
        other.y + MARGIN - half : other.y + MARGIN + half + 1, other.x + MARGIN - half : other.x + MARGIN + half + 1
    ]
    window[sum(coverage(other.kind)) > 0] *= 0.3
