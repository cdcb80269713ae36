"""Parameters as transformers holds them -> names and tensors as the hub's checkpoint of the model does.

What vLLM's loader expects, and what a saved folder must hold, is the checkpoint's layout: experts of a
mixture-of-experts model lie otherwise in memory, and older checkpoints have other names. transformers keeps the way
back (`revert_weight_conversion`); here it is walked parameter by parameter, so that nobody holds the whole model.
Left out on purpose: models of which several parameters become one tensor of the checkpoint; they are refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.errors import JudgeError

SHARD_BYTES = 4 * 2**30
"""Of a saved file: below the 5 GB of the hub's own shards; bounds the memory of a save."""


def settle_layout(model) -> None:
    """Make transformers' way back of a loaded model exact, for `to_hub` and `save_pretrained`. Raises JudgeError where
    it cannot be walked parameter by parameter.

    transformers 5.19 transposes experts while loading if their shape is not the model's, and so never while saving:
    the shape is the model's own then (`Transpose(check_dims=True)`)."""
    from transformers.core_model_loading import Transpose

    for conversion in getattr(model, "_weight_conversions", None) or []:
        operations = getattr(conversion, "operations", [])
        for n, operation in enumerate(operations):
            if isinstance(operation, Transpose) and operation.check_dims:
                operations[n] = Transpose(operation.dim0, operation.dim1)
        if operations and len(conversion.target_patterns) > 1:
            raise JudgeError(
                f"{type(model).__name__} has checkpoint tensors of several parameters ({conversion.target_patterns}),"
                " which cannot be pushed one by one; take a model of the Qwen-VL family"
            )


def to_hub(model, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs of the checkpoint for (name, tensor) pairs of a model that `settle_layout` saw, in order; a
    parameter may become several."""
    from transformers.core_model_loading import revert_weight_conversion

    if not getattr(model, "_weight_conversions", None):
        yield from named
        return
    for name, value in named:
        yield from revert_weight_conversion(model, {name: value.detach()}).items()


def has_tied_head(folder: Path) -> bool:
    """Whether the judge's output layer is its token embedding."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return bool(config.get("tie_word_embeddings") or config.get("text_config", {}).get("tie_word_embeddings"))


def head_overrides(folder: Path) -> dict:
    """What to change in the configuration an engine reads, so that it ties the output layer where the judge does; empty
    where nothing.

    transformers reads `tie_word_embeddings` of the whole model, vLLM 0.32 (qwen3_5.py) that of Qwen3.5's text part,
    which defaults to false: its output layer, of which such a folder holds no tensor, stays uninitialized memory."""
    config = json.loads((Path(folder) / "config.json").read_text())
    differ = "text_config" in config and not config["text_config"].get("tie_word_embeddings")
    return {"text_config": {"tie_word_embeddings": True}} if differ and config.get("tie_word_embeddings") else {}


def with_head(named: Iterable[tuple[str, Tensor]], tied: bool) -> Iterator[tuple[str, Tensor]]:
    """The stream, with the token embedding a second time as output layer where the two are tied: vLLM 0.32 unties them
    when it reloads, and an output layer without a tensor of its own keeps the old weights."""
    for name, value in named:
        yield name, value
        if tied and name.endswith("embed_tokens.weight"):
            yield "lm_head.weight", value


def refuse_layout(folder: Path) -> None:
    """Refuse a folder whose experts lie as transformers holds them: `save_pretrained` of transformers 5.19 writes
    Qwen3-VL-MoE so, and no engine loads it.   Raises: JudgeError."""
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "qwen3_vl_moe":
        return
    width = config["text_config"]["hidden_size"]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if name.endswith("experts.gate_up_proj"):
                    shape = file.get_slice(name).get_shape()
                    if shape[1] != width:
                        raise JudgeError(
                            f"{folder} must hold its experts as the hub does, [experts, {width}, 2 x intermediate], got"
                            f" {shape} of {name}: transformers' save_pretrained leaves them transposed; transpose the"
                            " last two axes of the expert tensors, or take the folder a run of ours saved"
                        )
                    return


def save_sharded(named: Iterable[tuple[str, Tensor]], folder: Path, limit: int = SHARD_BYTES) -> None:
    """Write a stream of tensors as safetensors files, with an index where they are several; one shard in memory at a
    time.

    Args: limit: bytes of a shard."""
    from safetensors.torch import save_file

    shard: dict[str, Tensor] = {}
    held, parts = 0, []  # bytes of the shard; (file, names) of those written

    def flush() -> None:
        nonlocal shard, held
        path = folder / f"part-{len(parts):05d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        parts.append((path, list(shard)))
        shard, held = {}, 0

    total = 0
    for name, value in named:
        size = value.numel() * value.element_size()
        if shard and held + size > limit:
            flush()
        # copied: a gathered tensor is gone when the next one is asked for
        shard[name] = torch.empty_like(value, device="cpu").copy_(value).contiguous()
        held, total = held + size, total + size
    flush()
    if len(parts) == 1:
        parts[0][0].rename(folder / "model.safetensors")
        return
    index = {}
    for n, (path, names) in enumerate(parts, 1):
        final = f"model-{n:05d}-of-{len(parts):05d}.safetensors"
        path.rename(folder / final)
        index |= dict.fromkeys(names, final)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))


def copy_side_files(source: Path, folder: Path) -> None:
    """Tokenizer, templates, processor and scoring format as they were; no weights, no model card."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.suffix != ".md":
            shutil.copy2(path, folder / path.name)
