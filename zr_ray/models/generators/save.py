"""A trained generator on disk, as diffusers itself reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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


def save_lora(adapter: GeneratorAdapter, source: Path, folder: Path) -> None:
    """The LoRA weights alone, for `pipeline.load_lora_weights(folder)`, and which base they belong to."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    layers = get_peft_model_state_dict(adapter.transformer)
    config = next(iter(adapter.transformer.peft_config.values()))
    adapter.pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config.to_dict()
    )
    (folder / "base.json").write_text(json.dumps({"base": str(source), "family": adapter.family}) + "\n")
