"""What a client's call must be, and how it becomes requests. What the service would refuse as a whole is refused here,
before anything is sent, whether gradients are wanted or not.

Left out on purpose: sending.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from zr_ray.errors import RewardError
from zr_ray.records import Limits, RewardRequest
from zr_ray.workers.limits import check_image, check_prompt, check_request

Images: TypeAlias = Tensor | Sequence[Tensor]
"""[B, 3, H, W], or B tensors [3, H, W] of any sizes; uint8, or float in [0, 1]."""

_ITEM_BYTES = 256
"""Beside pixels and prompt: an entry of the safetensors header, weights."""


def request_of(
    images: Images, prompts: Sequence[str], dimensions: tuple[str, ...] | None, weights, risk: float
) -> RewardRequest:
    """A call as one request of any size, with what can be refused without knowing the judge refused.

    dimensions: None for all that the judge has. weights: None for equal ones. Raises RewardError."""
    texts = _texts(prompts)
    arrays = _arrays(images)
    if len(arrays) != len(texts) or not texts:
        raise RewardError(f"every image needs one prompt, got {len(arrays)} images and {len(texts)} prompts")
    if dimensions is not None and (not dimensions or len(set(dimensions)) < len(dimensions)):
        raise RewardError(f"dimensions must be different names, one at least, got {list(dimensions)}")
    if isinstance(risk, Tensor) and risk.requires_grad:
        raise RewardError("risk gets no gradient from the service; detach it")
    try:
        risk = float(risk)
    except (TypeError, ValueError):
        raise RewardError(f"risk must be a finite number from 0 up, got {risk!r}") from None
    weighed = None if weights is None else weights_of(weights, 1)
    request = RewardRequest(arrays, texts, dimensions or (), weighed, risk, "")
    if dimensions is not None:
        check_request(request, Limits(items=len(texts)), dimensions)
    return request


def names_of(dimensions: Sequence[str]) -> tuple[str, ...]:
    """Dimensions as a tuple. Raises RewardError for a text, which is a sequence of letters."""
    if isinstance(dimensions, (str, bytes)):
        raise RewardError(f"dimensions must be a list of names, got the text {dimensions!r}; write [{dimensions!r}]")
    return tuple(dimensions)


def weights_of(weights, count: int) -> np.ndarray:
    """[D] or [B, D] float64; 1/D each for None. Raises RewardError for what is no number or wants a gradient."""
    if weights is None:
        return np.full(count, 1 / count)
    if isinstance(weights, Tensor) and weights.requires_grad:
        raise RewardError("weights get no gradient from the service; detach them, or weigh `score(...).mu` yourself")
    try:
        return torch.as_tensor(weights).detach().cpu().double().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"weights must be numbers, one a dimension: {error}") from None


def parts(request: RewardRequest, most_items: int, body_bytes: int) -> list[RewardRequest]:
    """A request as smaller ones, in order: at most so many items, and so many bytes as a safetensors body. Raises
    RewardError for an item that is too large alone."""
    sizes = [
        image.nbytes + len(json.dumps(json.dumps(prompt))) + _ITEM_BYTES
        for image, prompt in zip(request.images, request.prompts, strict=True)
    ]
    room = body_bytes - 4096
    if max(sizes) > room:
        i = int(np.argmax(sizes))
        raise RewardError(
            f"a request may have {body_bytes} bytes, image {i} {list(request.images[i].shape)} of"
            f" {request.images[i].dtype} alone has {sizes[i]}; send uint8, or scale it down"
        )
    found, start, held = [], 0, 0
    for i, size in enumerate([*sizes, math.inf]):
        if i > start and (i - start == most_items or held + size > room):
            found.append(_part(request, slice(start, i)))
            start, held = i, 0
        held += size
    return found


def item_faults(request: RewardRequest, limits: Limits, control_tokens: Sequence[str]) -> list[str]:
    """ "index: status (reason)" of every item that the service would not score."""
    faults = [
        check_image(image, limits) or check_prompt(prompt, limits, tuple(control_tokens))
        for image, prompt in zip(request.images, request.prompts, strict=True)
    ]
    return [f"{i}: {fault.status} ({fault.reason})" for i, fault in enumerate(faults) if fault is not None]


def _part(request: RewardRequest, part: slice) -> RewardRequest:
    weights = request.weights
    own = weights[part] if weights is not None and weights.ndim == 2 else weights
    return RewardRequest(
        request.images[part], request.prompts[part], request.dimensions, own, request.risk, uuid.uuid4().hex
    )


def _texts(prompts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(prompts, (str, bytes)):
        raise RewardError(f"prompts must be a list with one text an image, got the text {prompts[:40]!r}; repeat it")
    if isinstance(prompts, (dict, set)) or not hasattr(prompts, "__iter__"):
        raise RewardError(f"prompts must be a list with one text an image, got {type(prompts).__name__}")
    texts = tuple(prompts)
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise RewardError(f"a prompt must be text, prompt {wrong[0]} is {type(texts[wrong[0]]).__name__}")
    return texts


def _arrays(images: Images) -> np.ndarray | tuple[np.ndarray, ...]:
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise RewardError(f"images must be [B, 3, H, W], got {list(images.shape)}; one image is images[None]")
        return _array(images, "images")
    if not isinstance(images, (list, tuple)):
        raise RewardError(f"images must be a tensor or a list of tensors, got {type(images).__name__}")
    return tuple(_array(image, f"image {i}") for i, image in enumerate(images))


def _array(image: Tensor, name: str) -> np.ndarray:
    if not isinstance(image, Tensor):
        raise RewardError(f"{name} must be a tensor [3, H, W], got {type(image).__name__}; convert it")
    if image.is_complex() or image.is_quantized or image.layout != torch.strided:
        raise RewardError(f"{name} must be a plain tensor of uint8 or floats, got {image.dtype}, {image.layout}")
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()
