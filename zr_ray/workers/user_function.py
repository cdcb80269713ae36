"""A user's function as a scorer: `package.module:callable`, from images and prompts to named numbers.

Left out on purpose: files instead of modules; a job's working directory is importable.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.errors import ConfigError, RewardError


class FunctionScorer:
    """A user's function, or an object of his class, as a scorer."""

    def __init__(self, name: str, scores: tuple[str, ...], differentiable: bool = False) -> None:
        """name: `package.module:callable`; a class is made into an object first. scores: what it returns by name."""
        self.name, self.names, self.differentiable = name, tuple(scores), differentiable
        found = named_function(name)
        self._function = found() if isinstance(found, type) else found

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, D].   Raises: RewardError if the function does not return what its source says."""
        shown = images if self.differentiable else to_bytes(images).movedim(1, -1).cpu().numpy()
        made = self._function(shown, list(prompts))
        return by_name(made, self.names, len(prompts), self.name)


def named_function(name: str) -> Callable:
    """`package.module:callable`. Raises ConfigError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"a reward function must be package.module:callable, got {name!r} ({error}); correct it"
        ) from None


def function_hash(name: str) -> str:
    """sha256 over a function's name and the file of its module: an edited file is another reward."""
    named_function(name)
    file = importlib.import_module(name.partition(":")[0]).__file__
    return hashlib.sha256(name.encode() + b"\0" + (Path(file).read_bytes() if file else b"")).hexdigest()


def by_name(made, names: tuple[str, ...], count: int, who: str) -> Tensor:
    """[B, D] float64 from a function's name -> B numbers.   Raises: RewardError if names are missing or counts
    differ."""
    missing = [name for name in names if not isinstance(made, dict) or name not in made]
    if missing:
        raise RewardError(f"{who} must return {list(names)} by name, {missing} are missing; see its weights")
    columns = [torch.as_tensor(made[name]).double() for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.shape != (count,):
            raise RewardError(f"{who} must return {count} numbers for {name}, got the shape {list(column.shape)}")
    return torch.stack(columns, -1)


def to_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> uint8."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)
