"""From a diffusers folder to the adapter of its family."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from zr_ray.errors import CheckpointError
from zr_ray.models.generators.adapter import GeneratorAdapter, Picture

BUILTIN = Path(__file__).resolve().parents[2] / "assets" / "generator"
"""The generator that is shipped with the package."""
FAMILIES = {
    "ZImagePipeline": ("zr_ray.models.generators.z_image", "ZImageAdapter"),
    "StableDiffusion3Pipeline": ("zr_ray.models.generators.sd3", "StableDiffusion3Adapter"),
    "FluxPipeline": ("zr_ray.models.generators.flux", "FluxAdapter"),
    "QwenImagePipeline": ("zr_ray.models.generators.qwen_image", "QwenImageAdapter"),
}
"""Class in model_index.json -> module and class of its adapter."""


def generator_folder(path: str) -> Path:
    """The folder that a configuration means: `builtin`, or a diffusers folder. Raises CheckpointError if it holds no
    known pipeline."""
    folder = BUILTIN if path == "builtin" else Path(path)
    pipeline_class(folder)
    return folder


def pipeline_class(folder: Path) -> str:
    """Name in its model_index.json. Raises CheckpointError if there is none, or no adapter for it."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise CheckpointError(
            f"wanted a diffusers folder, got {folder} without model_index.json; name one that save_pretrained wrote,"
            " or builtin"
        )
    name = json.loads(index.read_text())["_class_name"]
    if name not in FAMILIES:
        raise CheckpointError(f"{folder} is a {name}; generators with an adapter are {', '.join(FAMILIES)}")
    return name


def load_adapter(
    folder: Path,
    picture: Picture,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    embedded_guidance: float | None = None,
) -> GeneratorAdapter:
    """The pipeline of a folder behind its family's adapter. Raises CheckpointError."""
    import importlib

    import diffusers

    name = pipeline_class(folder)
    module, adapter = FAMILIES[name]
    pipeline = getattr(diffusers, name).from_pretrained(folder, dtype=dtype).to(device)
    return getattr(importlib.import_module(module), adapter)(pipeline, picture, embedded_guidance)
