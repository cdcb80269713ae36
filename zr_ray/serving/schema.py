"""The JSON side of the service as pydantic models: what it accepts, and what the OpenAPI document says of every reply.

What these models exclude is refused as a whole (422); what only the content shows, such as a damaged image, is one
item's fault.
Left out on purpose: bounds that a service may change; `Limits` has them, and `GET /v1/judge` names them.
"""

from __future__ import annotations

import base64
import io
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zr_ray.data.images import FORMATS
from zr_ray.serving.refusals import WireError

JSON, SAFETENSORS = "application/json", "application/x-safetensors"
IMAGE_TYPES = {media_type: name for name, media_type in FORMATS.items()}
"""Media type -> Pillow's name of the format. The loader of data sets reads the same ones."""

Dimension = Annotated[str, Field(min_length=1, max_length=64, json_schema_extra={"format": "dimension"})]
Number = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[list[Dimension], Field(min_length=1)]
_NO_GRADIENT = "null where the item has no gradient"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Item(_Strict):
    """One image to be scored."""

    image: str = Field(
        description=f"base64 of an image file: {', '.join(FORMATS)}; transparent pixels are put on white",
        json_schema_extra={"format": "image-base64"},
    )
    prompt: str = Field(description="what the image was asked to show; no control tokens of the judge", min_length=1)
    dimensions: Names | None = Field(None, description="of this item; absent: those of the request")


class ScoreRequest(_Strict):
    """What POST /v1/score takes."""

    items: list[Item] = Field(min_length=1)
    dimensions: Names | None = Field(None, description="the reply's dimensions; absent: all")


class GradientRequest(ScoreRequest):
    """What POST /v1/score_and_grad takes: R = sum_d w_d (mu_d - k sigma_d)."""

    weights: list[Number] | list[list[Number]] | None = Field(
        None, description="w, one a dimension, or such a list for every item; absent: equal weights that sum to 1"
    )
    risk: Number = Field(0.0, description="k", ge=0)


class Scores(_Strict):
    """The judge's distribution in one dimension."""

    mu: float = Field(description="expected score")
    sigma: float = Field(description="standard deviation of the score")
    entropy: float = Field(description="of q, nats")
    outside: float = Field(description="probability that the judge gave to other tokens than scores")
    q: list[float] = Field(description="probability of each bin")


class Gradient(_Strict):
    """dR/dimage = gradient_scale x these numbers."""

    dtype: Literal["float32", "float64"]
    shape: list[int] = Field(description="3, height, width", min_length=3, max_length=3)
    base64: str = Field(description="the numbers, row by row, little endian")


class ItemReply(_Strict):
    """What came of one item."""

    status: str = Field(description="ok, or why it was not scored")
    reason: str = Field(description="empty, or one line: wanted, got, what to do")
    scores: dict[str, Scores] | None = Field(description="by dimension; null where not scored")
    reward: float | None = Field(None, description=f"R; {_NO_GRADIENT}")
    gradient_scale: float | None = Field(None, description=_NO_GRADIENT)
    gradient: Gradient | None = Field(None, description=_NO_GRADIENT)


class ScoreReply(_Strict):
    """Which judge answered what."""

    request_id: str
    judge: str
    model_hash: str
    template_hash: str
    preprocess_hash: str
    dimensions: list[str]
    bins: list[float] = Field(description="the scores of q's entries")
    items: list[ItemReply] = Field(description="in the order of the request")


class Problem(_Strict):
    """Why a request was refused."""

    status: str = Field(description="short code, for programs")
    message: str = Field(description="one line: wanted, got, what to do")


class ErrorReply(_Strict):
    """A refusal of a request as a whole."""

    error: Problem
    request_id: str


class HealthReply(_Strict):
    """A judge answers."""

    status: Literal["ok"]
    model_hash: str


class JudgeReply(BaseModel):
    """What answers, and what it takes."""

    judge: str
    model_hash: str
    template_hash: str
    preprocess_hash: str
    dimensions: list[str] = Field(description="what may be asked for")
    judges: list[str] = Field(description="values of the query key `judge`")
    bins: list[float]
    gives_gradient: bool
    dtype: str
    limits: dict[str, int]
    control_tokens: list[str] = Field(description="texts that no prompt may hold")


def checked(model: type[ScoreRequest], tree) -> ScoreRequest:
    """A parsed JSON body as a request. Raises WireError (422) naming the place of the first problem."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"] if part not in ("list[constrained-float]",)) or "the body"
        if problem["type"] == "extra_forbidden":
            raise WireError(unknown_key(where, _known(model, problem["loc"])), 422) from None
        raise WireError(
            f"{where[:80]}: {problem['msg']}, got {str(problem['input'])[:60]!r}; correct it", 422
        ) from None


def unknown_key(name: str, known: list[str]) -> str:
    """One line for a key that nothing reads, with the nearest one that something does."""
    import difflib

    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(known) or 'none'}"
    return f"no key {name[:80]!r} here{meant}"


def _known(model: type[BaseModel], place: tuple) -> list[str]:
    return list((Item if len(place) > 1 else model).model_fields)


def example_image() -> str:
    """Base64 of a small PNG file: the example of the document must work."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 0, 0)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
