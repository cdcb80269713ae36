"""What an item of a reward request must be, and the code each refusal carries. Checked once, in the process that holds
the judge.

Left out on purpose: files and HTTP; bytes become arrays in `serving/wire.py`, under the same limits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zr_ray.data.images import FORMATS
from zr_ray.data.prompts import control_token_fault
from zr_ray.errors import RewardError
from zr_ray.records import ItemFault, Limits, RewardRequest

STATUSES = {
    "ok": "scored",
    "undecodable": f"the bytes are no whole image of 8 bits a channel in one of {', '.join(FORMATS)}",
    "too_large": "more pixels than the service takes, in the image or in the request",
    "bad_dtype": "pixels must be uint8, float16, float32 or float64",
    "bad_shape": "an image must be [3, H, W] with sides above 0 and of a ratio below 200",
    "bad_pixels": "nan, infinite, or outside [0, 1]",
    "bad_prompt": "no text, or text with the judge's own control tokens",
    "empty_prompt": "nothing but white space",
    "prompt_too_long": "more characters or tokens than the service takes",
    "unknown_dimension": "the judge has no dimension of that name",
    "no_gradient": "this judge gives no gradient",
    "failed": "the judge gave no finite answer",
}
"""Status of an item -> its meaning."""

PIXEL_SLACK = 1e-3
"""Float pixels may leave [0, 1] by this much: decoders of generators round; a picture in [-1, 1] or [0, 255] is
refused."""


def check_request(request: RewardRequest, limits: Limits, known: Sequence[str]) -> None:
    """Raise RewardError for what concerns the request as a whole and not one item. known: dimensions of the judge
    asked."""
    dimensions = request.dimensions or tuple(known)
    count = len(request.prompts)
    if not 1 <= count <= limits.items:
        raise RewardError(f"a request must have 1 to {limits.items} items, got {count}; split it")
    if len(request.images) != count:
        raise RewardError(f"every image needs one prompt, got {len(request.images)} images and {count} prompts")
    if not set(dimensions) <= set(known) or len(set(dimensions)) != len(dimensions):
        raise RewardError(f"dimensions must be different names of {list(known)}, got {list(dimensions)}")
    if not (np.isscalar(request.risk) and np.isfinite(request.risk) and request.risk >= 0):
        raise RewardError(f"risk must be a finite number from 0 up, got {request.risk!r}")
    if request.weights is not None:
        wanted = (len(dimensions),), (count, len(dimensions))
        weights = np.asarray(request.weights)
        if weights.shape not in wanted or weights.dtype.kind not in "fiu" or not np.isfinite(weights).all():
            raise RewardError(
                f"weights must be finite numbers of shape {wanted[0]} or {wanted[1]}, got {weights.dtype}"
                f" {weights.shape}"
            )


def check_image(image: np.ndarray | ItemFault, limits: Limits) -> ItemFault | None:
    """What is wrong with an image, or None."""
    if isinstance(image, ItemFault):
        return image
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        return ItemFault(
            "bad_dtype",
            f"pixels must be uint8, float16, float32 or float64, got {getattr(image, 'dtype', type(image).__name__)}",
        )
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        return ItemFault("bad_shape", f"an image must be [3, H, W] with sides above 0, got {list(image.shape)}")
    height, width = image.shape[1:]
    if height * width > limits.pixels:
        return ItemFault(
            "too_large", f"an image may have {limits.pixels} pixels, got {width} x {height}; scale it down"
        )
    if max(height, width) > 200 * min(height, width):
        return ItemFault("bad_shape", f"sides must be of a ratio below 200, got {width} x {height}; crop the image")
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())  # nan if there is one
        if not (low >= -PIXEL_SLACK and high <= 1 + PIXEL_SLACK):
            return ItemFault(
                "bad_pixels", f"float pixels must lie in [0, 1], got {low} to {high}; rescale them, or send uint8"
            )
    return None


def check_prompt(prompt: str | ItemFault, limits: Limits, control_tokens: tuple[str, ...] = ()) -> ItemFault | None:
    """What is wrong with a prompt, or None. control_tokens: texts that the judge's tokenizer reads as commands."""
    if isinstance(prompt, ItemFault):
        return prompt
    if not isinstance(prompt, str):
        return ItemFault("bad_prompt", f"a prompt must be text, got {type(prompt).__name__}")
    if not prompt.strip():
        return ItemFault("empty_prompt", "a prompt must have at least one letter, got white space only")
    if len(prompt) > limits.prompt_chars:
        return ItemFault(
            "prompt_too_long", f"a prompt may have {limits.prompt_chars} characters, got {len(prompt)}; shorten it"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return ItemFault("bad_prompt", f"a prompt must be valid Unicode, got {error.reason}")
    fault = control_token_fault(prompt, control_tokens)
    return None if fault is None else ItemFault("bad_prompt", fault)
