"""Reasoning chains and edits for images that the verifier read, in the words of `reasoning.py`.

Of a broken object two readings can be right; the chain names the verifier's. Scenes can be turned into readings too, so
that a rendered image can be judged under a prompt that it was not drawn for.
"""

from __future__ import annotations

from dataclasses import replace

from zr_ray.world.reasoning import FLOAT_WORDS, level_word
from zr_ray.world.scene import SIZE, Asked, Request, Scene
from zr_ray.world.verifier.reading import SceneReading, SeenObject
from zr_ray.world.verifier.scores import pair_objects

_MIRRORED = {"left": "right", "right": "left"}


def reading_chains(request: Request, reading: SceneReading) -> dict[str, str]:
    """Dimension -> chain; in the form of `reasoning.reasoning_chains`, with "none" for a sun or a shadow that is not
    there."""
    _, places = pair_objects(reading, request)
    seen = [None if i is None else reading.objects[i] for i in places]
    words = _object_words("a", request.first, seen[0])
    if request.second is not None:
        words += [*_object_words("b", request.second, seen[1]), "relation"]
        found = reading.relations[places[0], places[1]] if None not in places else ""
        words += [found, "ok" if found == request.relation else "bad"] if found else ["none"]
    words += ["extra", "yes" if len(reading.objects) > sum(i is not None for i in places) else "no"]
    level = {name: level_word(value) for name, value in reading.levels.items()}
    shadow = next((o.shadow for o in reading.objects if o.grounded and o.shadow), "none")
    verdict = "bad" if reading.shadow_wrong or not reading.objects else "ok"
    return {
        "alignment": " ".join(words),
        "realism": f"noise {level['noise']} blur {level['blur']} blocks {level['blocks']}",
        "aesthetics": f"clash {level['clash']} clutter {level['clutter']} "
        f"dim {level['dimming']} crop {level['cropping']}",
        "plausibility": f"light {reading.light or 'none'} shadow {shadow} {verdict} "
        f"float {FLOAT_WORDS[reading.floating]} overlap {'yes' if reading.overlap else 'no'}",
    }


def _object_words(name: str, asked: Asked, seen: SeenObject | None) -> list[str]:
    if seen is None:
        return [name, "missing"]
    words = [name]
    for part in ("size", "color", "shape"):
        words += [getattr(seen, part), "ok" if getattr(seen, part) == getattr(asked, part) else "bad"]
    return words


def scene_reading(scene: Scene) -> SceneReading:
    """What a faultless reader sees in a rendered scene."""
    objects = tuple(
        SeenObject(**{name: getattr(o, name) for name in o.__dataclass_fields__}, grounded=bool(o.shadow))
        for o in scene.objects
    )
    return SceneReading(objects, relations_of(objects), scene.light, scene.ground, scene.overlap, scene.levels)


def relations_of(objects: tuple[SeenObject, ...]) -> dict[tuple[int, int], str]:
    """(i, j) -> where object i is, seen from object j, by the verifier's own rule (`verifier_physics.relation`)."""
    found = {}
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            dx, dy = b.x - a.x, b.base - a.base
            if i != j:
                found[i, j] = ("left" if dx >= 0 else "right") if abs(dx) >= abs(dy) else ("on" if dy > 0 else "under")
    return found


def mirrored_reading(reading: SceneReading) -> SceneReading:
    """The reading of the image turned left to right."""
    objects = tuple(replace(o, x=SIZE - 1 - o.x, shadow=_MIRRORED.get(o.shadow, "")) for o in reversed(reading.objects))
    return replace(reading, objects=objects, relations=relations_of(objects), light=_MIRRORED.get(reading.light, ""))


def mirrored_request(request: Request) -> Request:
    """The request that the mirrored image answers."""
    return replace(request, relation=_MIRRORED.get(request.relation, request.relation))
