"""The OpenAPI document of the service: bodies, query keys, and every status with its body.

Left out on purpose: the models themselves; see `schema.py`.
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from zr_ray.serving import schema
from zr_ray.serving.schema import IMAGE_TYPES, JSON, SAFETENSORS

_ERRORS = {
    400: "unreadable body",
    401: "no token",
    403: "wrong token",
    404: "unknown judge, or no such page",
    408: "the body came too slowly",
    411: "neither Content-Length nor chunks",
    413: "body too large",
    415: "content type, or a compressed body",
    422: "wrong request; for scores also: no item could be scored, each says why",
    429: "this gateway is full; Retry-After says when to ask again",
    503: "the judge is full or not there; Retry-After says when to ask again",
    504: "not answered within the service's deadline",
}
_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}, "required": False}}
_NAMED = "#/components/schemas/{model}"
TOKEN = {"bearer": {"type": "http", "scheme": "bearer", "description": "needed where the service has a token"}}


def document(api: FastAPI) -> dict:
    """The OpenAPI document of the application, with the way to send a token."""
    if api.openapi_schema is None:
        about = {"title": api.title, "version": api.version, "description": api.description}
        tree = get_openapi(**about, routes=api.routes, servers=api.servers)
        tree["components"]["securitySchemes"] = TOKEN
        for model in (schema.ScoreRequest, schema.GradientRequest):  # FastAPI sees no models in what reads its own body
            own = model.model_json_schema(ref_template=_NAMED)
            tree["components"]["schemas"] |= own.pop("$defs", {}) | {model.__name__: own}
        api.openapi_schema = tree
    return api.openapi_schema


def responses(model: type[BaseModel], *statuses: int, scores: bool = False) -> dict[int, dict]:
    """The `responses` of a route: 200 with `model`, and errors. scores: replies come as safetensors too, and as 422
    with nothing scored."""
    found: dict[int, dict] = {200: {"model": model, "description": "answered"}}
    for status in statuses:
        found[status] = {"model": schema.ErrorReply, "description": _ERRORS[status]}
        if status in (429, 503):
            found[status]["headers"] = _RETRY
    if scores:
        tensors = {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}}
        found[200] |= {"description": "at least one item was scored; each has its own status", "content": tensors}
        found[422] |= {"model": schema.ScoreReply | schema.ErrorReply, "content": tensors}
    return found


def judge_parameter() -> dict:
    """The query key of every route but health."""
    return {"parameters": [_parameter("judge", {"type": "string", "enum": ["student", "teacher"]}, "who is asked")]}


def scoring(model: type[schema.ScoreRequest], rewards: bool) -> dict:
    """Body and query of a scoring route. rewards: it takes weights and risk."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    names = {"type": "array", "items": {"type": "string", "minLength": 1, "format": "dimension"}, "minItems": 1}
    example = {
        "items": [{"image": schema.example_image(), "prompt": "a small red circle"}],
        "dimensions": ["alignment"],
    }
    own = "for a body that is an image file: "
    keys = [
        _parameter("prompt", {"type": "string", "minLength": 1}, own + "what it was asked to show"),
        _parameter("dimensions", names, own + "the reply's dimensions, comma-separated"),
    ]
    if rewards:
        numbers = {"type": "array", "items": {"type": "number"}, "minItems": 1}
        keys += [
            _parameter("weights", numbers, own + "one number a dimension, comma-separated"),
            _parameter("risk", {"type": "number", "minimum": 0}, own + "k of R = sum_d w_d (mu_d - k sigma_d)"),
        ]
    named = {"$ref": _NAMED.format(model=model.__name__)}
    body = {JSON: {"schema": named, "example": example}, SAFETENSORS: binary}
    return {
        "parameters": judge_parameter()["parameters"] + keys,
        "requestBody": {"required": True, "content": body | dict.fromkeys(IMAGE_TYPES, binary)},
    }


def _parameter(name: str, kind: dict, about: str) -> dict:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": kind,
        "description": about,
        "style": "form",
        "explode": False,
    }
