"""What a reward source is: a judge, a CLIP-family scorer or a user's function. Shared by the service that holds sources
and the training that asks them.

Left out on purpose: scorers with heads of their own beside CLIP's two towers (ImageReward, HPSv3, OCR); wrap one as a
`function`.
"""

from __future__ import annotations

from pydantic import model_validator

from zr_ray.config.sections import Section, field

CLIP_SCORES = ("logit", "cosine")
"""What a CLIP scorer says of image and prompt: the cosine of their embeddings, and that times the model's logit scale.
PickScore is a logit, HPSv2 a cosine."""
SOURCE_NAME = r"^[A-Za-z][A-Za-z0-9_\-]{0,30}$"
"""Names of sources become names of Serve deployments and parts of metrics' names."""


class SourceSection(Section):
    """One reward source: exactly one of `judge`, `clip` and `function`."""

    name: str = field(..., "its name in the service, in metrics, tables and reports", pattern=SOURCE_NAME)
    judge: str | None = field(None, "a judge: `student`, `builtin` or a Hugging Face folder; scores by dimension")
    clip: str | None = field(
        None,
        "folder of a transformers CLIPModel with its tokenizer and image processor (PickScore, HPSv2, CLIP); scores"
        " `logit` and `cosine`",
    )
    function: str | None = field(
        None,
        "package.module:callable, or a class whose instances are called: (images [N, H, W, 3] uint8, prompts) -> name"
        " -> N numbers; nan: not scored",
    )
    differentiable: bool = field(
        False,
        "the function gets a float tensor [N, 3, H, W] in [0, 1] instead and returns tensors that autograd reaches it"
        " through",
    )
    cut_prompts: bool = field(
        False, "a CLIP scorer cuts prompts at its model's length, as published code does; false: such items fail"
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of the three are given."""
        return tuple(kind for kind in ("judge", "clip", "function") if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _options_fit(self) -> SourceSection:
        for option, kind in (("differentiable", "function"), ("cut_prompts", "clip")):
            if getattr(self, option) and getattr(self, kind) is None:
                raise ValueError(f"reward source {self.name}: {option} belongs to a {kind}; leave it out")
        if len(self.kinds) > 1:
            raise ValueError(f"reward source {self.name} must be one thing, got {' and '.join(self.kinds)}; name one")
        return self


def same_names(names: list[str]) -> list[str]:
    """Names that are there more than once."""
    return sorted({name for name in names if names.count(name) > 1})
