"""A trained generator on disk, as diffusers itself reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.errors import ConfigError
from zr_ray.models.generators.adapter import GeneratorAdapter


def save_pipeline(adapter: GeneratorAdapter, source: Path, folder: Path) -> None:
    """The whole pipeline: the transformer as it is now, everything else copied from where it came."""
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((source / "model_index.json").read_text())
    for name, value in index.items():
        if isinstance(value, list) and name != "transformer" and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    shutil.copy2(source / "model_index.json", folder / "model_index.json")
    adapter.transformer.save_pretrained(folder / "transformer")


def save_lora(adapter: GeneratorAdapter, source: Path, folder: Path, comfyui: bool = False) -> None:
    """The LoRA weights alone, for `pipeline.load_lora_weights(folder)`, and which base they belong to. comfyui: also
    comfyui/lora.safetensors."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    layers = get_peft_model_state_dict(adapter.transformer)
    config = next(iter(adapter.transformer.peft_config.values()))
    adapter.pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config.to_dict()
    )
    if comfyui:
        from safetensors.torch import save_file

        # a folder of its own: diffusers takes the safetensors file of a LoRA's folder by guessing
        (folder / "comfyui").mkdir(exist_ok=True)
        tensors = comfyui_lora(layers, config.lora_alpha, adapter.family)
        save_file(tensors, folder / "comfyui" / "lora.safetensors", {"format": "pt"})
    (folder / "base.json").write_text(json.dumps({"base": str(source), "family": adapter.family}) + "\n")


def comfyui_lora(layers: dict[str, Tensor], alpha: float, family: str) -> dict[str, Tensor]:
    """LoRA weights under the names that ComfyUI's loader reads (comfy/lora.py, model_lora_keys_unet).

    `<module>.lora_down.weight` [r, in], `<module>.lora_up.weight` [out, r] and `<module>.alpha`; ComfyUI adds
    alpha / r up down. Without an alpha it takes r, and peft's metadata it does not read. Modules keep diffusers' names:
    ComfyUI maps them to its own, fused ones, behind `diffusion_model.` for Z-Image and `transformer.` for SD3, FLUX and
    Qwen-Image.
    Args: layers: peft's state, `<module>.lora_A.weight` and `<module>.lora_B.weight`.
    Raises: ConfigError for a key of another kind: none is left out."""
    prefix = "diffusion_model." if family == "z_image" else "transformer."
    names = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    made = {}
    for key, value in layers.items():
        end = next((end for end in names if key.endswith(end)), None)
        if end is None:
            raise ConfigError(f"ComfyUI reads adapters of linear layers, got {key}; leave generator.lora.comfyui out")
        module = prefix + key.removesuffix(end)
        made[module + names[end]] = value.detach().cpu().contiguous()
        made[f"{module}.alpha"] = torch.tensor(float(alpha))
    return made
