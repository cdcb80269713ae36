"""What a scene of the built-in rubric world holds, and where its objects stand. Everything here is SIMULATED.

A scene is 64 x 64 pixels: sky, a ground line, a sun in the upper left or right corner, one or two asked-for objects,
sometimes an extra one. A `Request` is what the prompt asks for; a `Scene` is what is drawn. Defects are differences
between the two (alignment), degradation levels (realism, aesthetics) and breaches of support, shadow and contact
(plausibility).
Left out on purpose: perspective, textures, more than two asked-for objects; a 64-pixel picture would not carry them.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 64
"""Image side, pixels."""
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "big")
RELATIONS = ("left", "right", "on", "under")
"""Where the first object is, seen from the second. "on" and "under" are stacks."""
PHRASES = {"left": "left of", "right": "right of", "on": "on", "under": "under"}
"""Relation -> its words in a prompt."""
HALF_WIDTH = {"small": 5, "big": 8}
"""Pixels from an object's center to its edge: small objects are 11 pixels wide and high, big ones 17."""
FLOAT_GAP = (0, 4, 8)
"""Pixels of air under an object per floating level: 0 supported, 1 slight, 2 clear."""
OVERLAP_PIXELS = 6
"""Depth to which two objects interpenetrate when they overlap."""
REALISM = ("noise", "blur", "blocks")
AESTHETICS = ("clash", "clutter", "dimming", "cropping")
LEVELS = REALISM + AESTHETICS
"""Degradations with a level in [0, 1]; 0 is absent, present ones are at least MIN_LEVEL. Each lowers the dimension it
is listed under."""
MIN_LEVEL = 0.2
"""Smallest level of a present degradation: below it a person would not see it at 64 pixels."""


@dataclass(frozen=True)
class Asked:
    """One object as the prompt names it."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Request:
    """What a prompt asks for."""

    first: Asked
    second: Asked | None = None
    relation: str = ""
    """One of RELATIONS when there is a second object, else empty."""

    @property
    def prompt(self) -> str:
        """Lower-case words separated by single spaces, e.g. "small red circle left of big blue square"."""
        return str(self.first) if self.second is None else f"{self.first} {PHRASES[self.relation]} {self.second}"


@dataclass(frozen=True)
class SceneObject:
    """One object as it is drawn."""

    size: str
    color: str
    shape: str
    x: int = SIZE // 2
    """Column of the center."""
    base: int = SIZE // 2
    """Lowest row the object covers."""
    floating: int = 0
    """Index into FLOAT_GAP."""
    shadow: str = ""
    """"left" or "right" of the object on the ground; empty when it casts none (the upper one of a stack)."""

    @property
    def half(self) -> int:
        return HALF_WIDTH[self.size]

    @property
    def y(self) -> int:
        """Row of the center."""
        return self.base - self.half


@dataclass(frozen=True)
class Scene:
    """What is drawn. `first` and `second` are the objects that answer the request's, None when missing."""

    first: SceneObject | None
    second: SceneObject | None
    extra: SceneObject | None
    relation: str
    """Seen relation of first to second; empty unless both are there."""
    light: str
    """Corner of the sun, "left" or "right". Physics puts every shadow on the other side."""
    shadow_wrong: bool
    overlap: bool
    levels: dict[str, float]
    """LEVELS -> [0, 1]."""
    ground: int
    """First row of the ground."""
    seed: int
    """Seeds what has no meaning: noise pattern, litter positions, palette of a clash."""

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """Visible objects in drawing order."""
        return tuple(o for o in (self.extra, self.first, self.second) if o is not None)

    @property
    def floating(self) -> int:
        """Highest floating level in the scene."""
        return max(o.floating for o in self.objects)


@dataclass(frozen=True)
class Layout:
    """The free choices of a placement; see `place`."""

    ground: int = 42
    """41 or 42, so that the halves of a stack lie in different rows of the 4 x 4 cell grid."""
    offset: int = 0
    """Columns from the middle, for a single object or a stack."""
    gap: int = 5
    """Columns between objects that stand side by side."""
    extra_side: str = "left"
    floater: int = 0
    """Which of two objects side by side floats (0 first, 1 second)."""


def place(
    first: Asked | None,
    second: Asked | None,
    extra: Asked | None,
    relation: str,
    *,
    light: str,
    shadow_wrong: bool = False,
    floating: int = 0,
    overlap: bool = False,
    levels: dict[str, float] | None = None,
    layout: Layout = Layout(),
    seed: int = 0,
) -> Scene:
    """Put objects on the ground and return the scene.

    In a stack only the upper object can float, so a stack never floats and overlaps at once; overlapping objects side
    by side float together. Cropping moves everything away from the sun until the outermost object is cut by 10 to 45 %
    of its width.
    Raises: ValueError if an overlap is asked for without two objects, or together with floating in a stack.
    """
    levels = dict.fromkeys(LEVELS, 0.0) | (levels or {})
    both = first is not None and second is not None
    relation = relation if both else ""
    if overlap and (not both or (floating and relation in ("on", "under"))):
        raise ValueError("overlap needs two objects, and cannot be combined with floating in a stack")
    toward = {"left": "right", "right": "left"}[light] if not shadow_wrong else light
    center = SIZE // 2 + layout.offset
    spots: dict[int, tuple[int, int, int, str]] = {}  # which -> x, base, floating, shadow
    if not both:
        spots[0 if first is not None else 1] = (center, layout.ground - 1 - FLOAT_GAP[floating], floating, toward)
    elif relation in ("on", "under"):
        lower = 1 if relation == "on" else 0
        height = 2 * HALF_WIDTH[(first, second)[lower].size] + 1
        top_base = layout.ground - 1 - height - FLOAT_GAP[floating] + (OVERLAP_PIXELS if overlap else 0)
        spots[lower] = (center, layout.ground - 1, 0, toward)
        spots[1 - lower] = (center, top_base, floating, "")
    else:
        leftmost = 0 if relation == "left" else 1
        halves = HALF_WIDTH[first.size] + HALF_WIDTH[second.size] + 1
        distance = halves + (-OVERLAP_PIXELS if overlap else layout.gap)
        x = SIZE // 2 - (distance + 1) // 2
        for which, column in ((leftmost, x), (1 - leftmost, x + distance)):
            level = floating if overlap or which == layout.floater else 0
            spots[which] = (column, layout.ground - 1 - FLOAT_GAP[level], level, toward)
    shift, extra_side = 0, layout.extra_side
    if levels["cropping"] > 0:
        extra_side = light
        shift = _crop_shift(
            levels["cropping"], light, [(spots[i][0], HALF_WIDTH[o.size]) for i, o in enumerate((first, second)) if o]
        )
    drawn = [
        SceneObject(o.size, o.color, o.shape, spots[i][0] + shift, *spots[i][1:]) if o is not None else None
        for i, o in enumerate((first, second))
    ]
    stray = None
    if extra is not None:
        column = (6 if extra_side == "left" else 58) + shift
        stray = SceneObject(extra.size, extra.color, extra.shape, column, layout.ground - 1, 0, toward)
    return Scene(drawn[0], drawn[1], stray, relation, light, shadow_wrong, overlap, levels, layout.ground, seed)


def _crop_shift(level: float, light: str, spans: list[tuple[int, int]]) -> int:
    """Columns to move the scene so that its outermost object on the side away from the sun is cut. spans: (x, half
    width)."""
    if light == "left":
        x, half = max(spans, key=lambda span: span[0] + span[1])
        return (SIZE - 1 - (x + half)) + round((0.1 + 0.35 * level) * (2 * half + 1))
    x, half = min(spans, key=lambda span: span[0] - span[1])
    return -(x - half) - round((0.1 + 0.35 * level) * (2 * half + 1))
