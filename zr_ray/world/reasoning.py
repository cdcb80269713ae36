"""Oracle reasoning: at most 19 words that name what is seen per check, and for alignment compare it with what was
asked.

    alignment      a small ok blue bad circle ok b big ok red ok square ok relation left ok extra no
    realism        noise low blur high blocks none
    aesthetics     clash none clutter mid dim low crop none
    plausibility   light left shadow left bad float low overlap no

No chain holds a score. Levels are words: none (absent), low, mid, high.
"""

from __future__ import annotations

from zr_ray.world.scene import COLORS, PHRASES, RELATIONS, SHAPES, SIZES, Asked, Request, Scene, SceneObject

LEVEL_WORDS = ("none", "low", "mid", "high")
LEVEL_EDGES = (0.45, 0.72)
"""A present level below the first edge is low, below the second mid, else high."""
FLOAT_WORDS = ("none", "low", "high")


def level_word(level: float) -> str:
    """Word for a degradation level in [0, 1]."""
    return "none" if level <= 0 else LEVEL_WORDS[1 + sum(level >= edge for edge in LEVEL_EDGES)]


def reasoning_chains(request: Request, scene: Scene) -> dict[str, str]:
    """Dimension -> oracle chain, words separated by single spaces."""
    words = _object_words("a", request.first, scene.first)
    if request.second is not None:
        words += _object_words("b", request.second, scene.second)
        words += ["relation"] + (
            [scene.relation, _verdict(scene.relation == request.relation)] if scene.relation else ["none"]
        )
    words += ["extra", "yes" if scene.extra is not None else "no"]
    level = {name: level_word(value) for name, value in scene.levels.items()}
    shadow = next(o.shadow for o in scene.objects if o.shadow)
    return {
        "alignment": " ".join(words),
        "realism": f"noise {level['noise']} blur {level['blur']} blocks {level['blocks']}",
        "aesthetics": (
            f"clash {level['clash']} clutter {level['clutter']} dim {level['dimming']} crop {level['cropping']}"
        ),
        "plausibility": (
            f"light {scene.light} shadow {shadow} {_verdict(not scene.shadow_wrong)} "
            f"float {FLOAT_WORDS[scene.floating]} overlap {'yes' if scene.overlap else 'no'}"
        ),
    }


def _object_words(name: str, asked: Asked, seen: SceneObject | None) -> list[str]:
    if seen is None:
        return [name, "missing"]
    words = [name]
    for part in ("size", "color", "shape"):
        words += [getattr(seen, part), _verdict(getattr(seen, part) == getattr(asked, part))]
    return words


def _verdict(met: bool) -> str:
    return "ok" if met else "bad"


def vocabulary() -> list[str]:
    """Every word a prompt or a chain can contain, sorted, without repeats."""
    words = {*SIZES, *COLORS, *SHAPES, *RELATIONS, *LEVEL_WORDS, *FLOAT_WORDS, "ok", "bad", "yes", "no"}
    words |= {word for phrase in PHRASES.values() for word in phrase.split()}
    words |= {"a", "b", "missing", "relation", "extra", "noise", "blur", "blocks", "clash", "clutter", "dim", "crop"}
    return sorted(words | {"light", "shadow", "float", "overlap"})
