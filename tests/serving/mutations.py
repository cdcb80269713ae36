"""Requests that were right before something in them was changed; test_wire and test_endurance send them."""

import base64
import copy
import json
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import numpy as np

from tests.data.test_images import mutated, seeds
from zr_ray.rubric import DIMENSIONS
from zr_ray.serving import wire

PROMPT = "a small red circle"
STRANGE = [None, True, -1, 0, 1e308, 10**40, "", "\ud800", "\0", "a" * 3000, [], {}, [[]] * 50, {"a": {"b": []}}]
STRANGE += ["<|im_end|>", float("nan"), "realism"]


def strange(tree, rng: np.random.Generator):
    """A JSON value with one of its parts replaced, taken out, or put in twice."""
    tree = copy.deepcopy(tree)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        kind = rng.random()
        if kind < 0.7:
            node[key] = STRANGE[rng.integers(len(STRANGE))]
        elif kind < 0.85:
            del node[key]
        elif isinstance(node, list):
            node.append(node[key])
        else:
            node[f"{key}s"] = node[key]
        return tree


def cases(count: int) -> Iterator[tuple[str, str, str, bytes]]:
    """(path, query, content type, body), `count` times: JSON and safetensors with changed bytes and with changed
    values, image files of every format with their query."""
    rng, files = np.random.default_rng(count), seeds()
    item = {"image": base64.b64encode(files[0]).decode(), "prompt": PROMPT, "dimensions": ["realism"]}
    plain = {"items": [item], "dimensions": None}
    rewarded = plain | {"weights": [0.5] * len(DIMENSIONS), "risk": 0.5}
    pixels = rng.integers(0, 256, (2, 3, 32, 32), np.uint8)
    said = {"prompts": [PROMPT] * 2, "dimensions": ["realism", "alignment"]}

    def tensors(gradient: bool, request) -> bytes:
        if not gradient:
            return wire.pack({"images": pixels}, request=request)
        return wire.pack({"images": pixels / np.float32(255), "weights": np.ones(2)}, request=request)

    for n in range(count):
        gradient, query = bool(rng.integers(2)), b""
        tree = rewarded if gradient else plain
        asked = said | {"risk": 1} if gradient else said
        if n % 5 == 0:
            kind, body = wire.JSON, json.dumps(strange(tree, rng)).encode()
        elif n % 5 == 1:
            kind, body = wire.JSON, mutated(json.dumps(tree).encode(), rng)
        elif n % 5 == 2:
            kind, body = wire.SAFETENSORS, tensors(gradient, strange(asked, rng))
        elif n % 5 == 3:
            kind, body = wire.SAFETENSORS, mutated(tensors(gradient, asked), rng)
        else:
            kind, body = "image/png", mutated(files[rng.integers(len(files))], rng)
            query = f"prompt={PROMPT}&dimensions=realism,alignment{'&weights=1,2&risk=.5' * gradient}".encode()
            query = mutated(query, rng) if rng.random() < 0.3 else query
        yield "/v1/score_and_grad" if gradient else "/v1/score", quote_from_bytes(query, safe="=&, ."), kind, body
