"""HTTP bodies to requests, and replies to bodies. Nothing here executes what it reads: JSON, safetensors and image
files.

    application/json           schema.ScoreRequest: {"items": [{"image": base64 of an image file, "prompt": text}], ...}
    application/x-safetensors  images [B, 3, H, W] or image.0, image.1, ...; weights; metadata "request":
                               {"prompts", "dimensions", "risk"} as JSON
    image/png, jpeg, ...       one image; prompt, dimensions, weights (comma-separated) and risk in the query

Replies are JSON, or safetensors with metadata "reply". Whatever a body or query says is used or refused.
Left out on purpose: pickle, URLs to fetch, multipart forms, compressed bodies.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from zr_ray.data.images import FORMATS, ImageTooLarge, decode_image
from zr_ray.errors import DataError
from zr_ray.records import ItemFault, JudgeIdentity, Limits, RewardReply, RewardRequest
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.serving import schema
from zr_ray.serving.bounded_json import bounded_json
from zr_ray.serving.refusals import WireError
from zr_ray.serving.schema import IMAGE_TYPES, JSON, SAFETENSORS

IMAGE_QUERY = ("prompt", "dimensions", "weights", "risk")
"""Query keys of a body that is an image file; other bodies say these things themselves."""
COLUMNS = ("q", "mu", "sigma", "entropy", "outside")


def read_request(
    content_type: str,
    body: bytes,
    query: Mapping[str, str],
    gradient: bool,
    limits: Limits,
    request_id: str,
    known: tuple[str, ...] = DIMENSIONS,
) -> RewardRequest:
    """The request in a body. Items that do not decode become faults. known: dimensions of the judge that is
    asked.   Raises:
    WireError with the HTTP status it should get."""
    if content_type == JSON:
        images, prompts, options = _read_json(body, gradient, limits)
    elif content_type == SAFETENSORS:
        images, prompts, options = _read_safetensors(body, gradient, limits)
    elif content_type in IMAGE_TYPES:
        images, prompts, options = _decode_all([body], limits), (query.get("prompt", ""),), _image_options(query)
    else:
        raise WireError(
            f"content type must be {JSON}, {SAFETENSORS} or one of {list(IMAGE_TYPES)}, got {content_type!r}", 415
        )
    if not gradient and {"weights", "risk"} & set(options):
        raise WireError("weights and risk belong to a reward; ask /v1/score_and_grad, or leave them out", 422)
    dimensions, prompts = _dimensions(options, prompts, known)
    try:
        risk = float(options.get("risk", 0.0))
        weights = np.asarray(options["weights"], np.float64) if options.get("weights") is not None else None
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"weights and risk must be numbers: {error}", 422) from None
    if gradient and weights is None:
        weights = np.full(len(dimensions), 1 / len(dimensions))
    return RewardRequest(images, prompts, dimensions, weights, risk, request_id)


def check_query(query: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, str]:
    """A query as a dictionary. Raises WireError (422) for a key that nothing reads, or that is there twice."""
    found: dict[str, str] = {}
    for name, value in query:
        if name not in known:
            raise WireError(schema.unknown_key(name, list(known)), 422)
        if name in found:
            raise WireError(f"the query key {name} may be there once, got it twice; remove one", 422)
        found[name] = value
    return found


def _image_options(query: Mapping[str, str]) -> dict:
    options: dict = {name: _numbers(name, query[name]) for name in ("weights", "risk") if name in query}
    if "dimensions" in query:
        options["dimensions"] = query["dimensions"].split(",")
    if "risk" in options:
        if len(options["risk"]) > 1:
            raise WireError(f"risk must be one number, got {query['risk'][:80]!r}", 422)
        options["risk"] = options["risk"][0]
    return options


def _dimensions(options: dict, prompts: tuple, known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple]:
    """The reply's D axis: what the request asks for, or all; items may name their own, the axis is then the union in
    rubric order."""
    asked, own = options.get("dimensions"), options.get("item_dimensions", [None] * len(prompts))
    if asked is not None and not (
        isinstance(asked, list) and asked and all(d in known for d in asked) and len(set(asked)) == len(asked)
    ):
        raise WireError(f"dimensions must be different names of {list(known)}, got {asked!r}"[:300], 422)
    checked, union = [], set(asked or [])
    for prompt, names in zip(prompts, own, strict=True):
        unknown = (
            []
            if names is None
            else [d for d in names if d not in known]
            if isinstance(names, list) and names
            else [names]
        )
        union |= set(names or []) if not unknown else set()
        fault = ItemFault("unknown_dimension", f"dimensions must be names of {list(known)}, got {unknown!r}"[:300])
        checked.append(fault if unknown else prompt)
    if asked is not None and union == set(asked):
        return tuple(asked), prompts
    everywhere = asked is None and (not union or any(names is None for names in own))
    return (known if everywhere else tuple(d for d in known if d in union)), tuple(checked)


def _most_values(limits: Limits) -> int:
    """Values that JSON about `limits.items` items may hold: keys, weights, and prompts of nothing but commas."""
    return 1000 + limits.items * (100 + limits.prompt_chars)


def _read_json(body: bytes, gradient: bool, limits: Limits) -> tuple[tuple, tuple, dict]:
    tree = bounded_json(body, _most_values(limits))
    request = schema.checked(schema.GradientRequest if gradient else schema.ScoreRequest, tree)
    items = request.items
    if len(items) > limits.items:
        raise WireError(f"a request must have 1 to {limits.items} items, got {len(items)}; split it", 422)
    images = _decode_all([_from_base64(item.image) for item in items], limits)
    options = {name: getattr(request, name) for name in request.model_fields_set - {"items"}}
    return images, tuple(i.prompt for i in items), options | {"item_dimensions": [i.dimensions for i in items]}


def _from_base64(text: str) -> bytes | ItemFault:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return ItemFault("undecodable", f"an image must be base64 text of a file ({', '.join(FORMATS)})")


def _decode_all(files: Sequence[bytes | ItemFault], limits: Limits) -> tuple[np.ndarray | ItemFault, ...]:
    images: list[np.ndarray | ItemFault] = []
    left = limits.request_pixels
    for file in files:
        images.append(file if isinstance(file, ItemFault) else _decode(file, min(limits.pixels, left)))
        left -= 0 if isinstance(images[-1], ItemFault) else images[-1][0].size
    return tuple(images)


def _decode(file: bytes, max_pixels: int) -> np.ndarray | ItemFault:
    """[3, H, W] uint8."""
    try:
        image = decode_image(io.BytesIO(file), "image", max_pixels)
    except ImageTooLarge as error:
        return ItemFault("too_large", str(error))
    except (DataError, MemoryError) as error:
        return ItemFault("undecodable", str(error)[:300])
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _read_safetensors(body: bytes, gradient: bool, limits: Limits) -> tuple[tuple | np.ndarray, tuple, dict]:
    # a character of a prompt is up to 14 bytes of JSON inside JSON; every entry of the header becomes an object
    tensors, metadata = unpack(body, most_header_bytes=4096 + limits.items * (1024 + 14 * limits.prompt_chars))
    unknown = [name for name in metadata if name not in ("request", "format")]
    if unknown:
        raise WireError("metadata: " + schema.unknown_key(unknown[0], ["request"]), 422)
    options = bounded_json(metadata.get("request", "null").encode(), _most_values(limits))
    if (
        not isinstance(options, dict)
        or not isinstance(options.get("prompts"), list)
        or set(options) - {"prompts", "dimensions", "risk"}
    ):
        raise WireError(
            'metadata "request" must be a JSON object with a list "prompts", and at most "dimensions" and "risk"'
            " beside it",
            422,
        )
    if isinstance(options.get("risk", 0.0), (str, bool)):
        raise WireError(f"risk must be a number, got {str(options['risk'])[:40]!r}", 422)
    prompts, weights = options["prompts"], tensors.pop("weights", None)
    if set(tensors) == {"images"} and tensors["images"].ndim == 4:
        images = tuple(tensors["images"])
    elif set(tensors) == {f"image.{i}" for i in range(len(tensors))}:
        images = tuple(tensors[f"image.{i}"] for i in range(len(tensors)))
    else:
        raise WireError(
            f'tensors must be "images" [B, 3, H, W] or "image.0", "image.1", ..., got {sorted(tensors)[:5]}', 422
        )
    if len(images) != len(prompts) or not 1 <= len(prompts) <= limits.items:
        raise WireError(
            f"images and prompts must be equally many, 1 to {limits.items}; got {len(images)} and {len(prompts)}", 422
        )
    return images, tuple(prompts), options if weights is None else options | {"weights": weights}


def _numbers(name: str, text: str) -> list[float]:
    parts = text.split(",")
    if not all(re.fullmatch(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", part) for part in parts):
        raise WireError(f"{name} must be comma-separated numbers, got {text[:80]!r}", 422)
    return [float(part) for part in parts]


# ---- safetensors with metadata ----


def pack(tensors: dict[str, np.ndarray], **metadata) -> bytes:
    """Safetensors bytes; metadata values are written as JSON."""
    from safetensors.numpy import save

    return save(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, {k: json.dumps(v) for k, v in metadata.items()}
    )


def unpack(body: bytes, most_header_bytes: int = 1 << 27) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata. Raises WireError for anything that is not whole and valid."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    length = int.from_bytes(body[:8], "little")
    if len(body) - 8 >= length > most_header_bytes:
        raise WireError(
            f"a safetensors header may have {most_header_bytes} bytes, got {length}; split the request", 422
        )
    try:
        tensors = load(body)
        metadata = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise WireError(
            f"the body must be a whole safetensors file of float16/32/64 or uint8 tensors: {type(error).__name__}"
            f" {str(error)[:200]}"
        ) from None
    return tensors, metadata


# ---- replies ----


def reply_json(reply: RewardReply) -> dict:
    """A reply as JSON values; what was not scored is null."""
    items = []
    for i, status in enumerate(reply.status):
        item: dict = {"status": status, "reason": reply.reason[i], "scores": None}
        if status == "ok":
            item["scores"] = {
                d: {name: getattr(reply, name)[i, k].tolist() for name in ("mu", "sigma", "entropy", "outside", "q")}
                for k, d in enumerate(reply.dimensions)
            }
            if reply.gradients is not None:
                slope = reply.gradients[i]
                item["reward"], item["gradient_scale"] = float(reply.reward[i]), float(reply.scale[i])
                item["gradient"] = {
                    "dtype": str(slope.dtype),
                    "shape": list(slope.shape),
                    "base64": base64.b64encode(slope.tobytes()).decode(),
                }
        items.append(item)
    return _head(reply) | {"items": items}


def reply_safetensors(reply: RewardReply) -> bytes:
    """A reply as safetensors: the arrays, gradient.<i> for each scored item, and the rest as metadata."""
    tensors = {name: getattr(reply, name) for name in COLUMNS}
    if reply.gradients is not None:
        tensors |= {"reward": reply.reward, "scale": reply.scale}
        tensors |= {f"gradient.{i}": g for i, g in enumerate(reply.gradients) if g is not None}
    return pack(tensors, reply=_head(reply) | {"status": reply.status, "reason": reply.reason})


def read_reply(body: bytes) -> RewardReply:
    """The reply in safetensors bytes."""
    tensors, metadata = unpack(body)
    head = json.loads(metadata["reply"])
    identity = JudgeIdentity(head["judge"], head["model_hash"], head["template_hash"], head["preprocess_hash"])
    gradient = {}
    if "reward" in tensors:
        gradients = tuple(tensors.get(f"gradient.{i}") for i in range(len(head["status"])))
        gradient = {"reward": tensors["reward"], "scale": tensors["scale"], "gradients": gradients}
    columns = {name: tensors[name] for name in COLUMNS}
    return RewardReply(
        head["request_id"],
        identity,
        tuple(head["dimensions"]),
        tuple(head["status"]),
        tuple(head["reason"]),
        tuple(head.get("bins", PAPER.bins)),
        **columns,
        **gradient,
    )


def request_safetensors(request: RewardRequest) -> bytes:
    """A request as a body. Faults have no place here: the client sends arrays."""
    images = request.images
    tensors = (
        {"images": images}
        if isinstance(images, np.ndarray)
        else {f"image.{i}": image for i, image in enumerate(images)}
    )
    said = {"prompts": request.prompts, "dimensions": request.dimensions or None}
    if request.weights is not None:
        tensors["weights"] = np.asarray(request.weights, np.float64)
        said["risk"] = request.risk
    return pack(tensors, request=said)


def _head(reply: RewardReply) -> dict:
    i = reply.identity
    return {
        "request_id": reply.request_id,
        "judge": i.judge,
        "model_hash": i.model_hash,
        "template_hash": i.template_hash,
        "preprocess_hash": i.preprocess_hash,
        "dimensions": list(reply.dimensions),
        "bins": list(reply.bins),
    }
