"""JSON from strangers: bounded before it is parsed, and read without leaving anything out.

Left out on purpose: which keys there are; see `schema.py`.
"""

from __future__ import annotations

import json

from zr_ray.serving.refusals import WireError

_PART = 1 << 20


def bounded_json(text: bytes, most_values: int):
    """The value in JSON text. Raises WireError for more than `most_values` values (a byte of text may cost 60 bytes of
    memory once it is an object), for what is not JSON (NaN included), and for an object with a key twice.

    Values are counted by the characters that open or separate them, wherever they stand: text with many commas counts
    as many values, so `most_values` must leave room for the prompts."""
    count = 0
    for start in range(0, len(text), _PART):
        part = text[start : start + _PART]
        count += part.count(b"[") + part.count(b"{") + part.count(b",")
        if count > most_values:
            raise WireError(f"JSON may hold {most_values} values here, got more; split the request", 422)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body must be JSON: {str(error)[:200]}") from None


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise WireError(f"an object must have each key once, got {twice[:40]!r} twice; remove one", 422)
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
