"""What a rollout engine is started with: limits derived from the judge's folder, the data and the configuration.

    judge's config.json, longest question of the data, rollout section -> the same section without a null

What vLLM would refuse at its start is refused here, in one line, before anything is asked of Ray.
Left out on purpose: tuning. A limit is the smallest that holds the data; whoever knows better sets the key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.workers import BATCHED_TOKENS, CPU_CACHE_GIB, VLLM_SHARE, RolloutSection
from zr_ray.data.run_data import Need
from zr_ray.errors import ConfigError, JudgeError
from zr_ray.models.hub_layout import refuse_layout

STEP = 64
"""Tokens that a derived length is rounded up to: questions of a resumed or grown data set still fit."""
DIRECT = 16
"""Tokens that a direct question adds to a reasoned one at most: an empty thinking block, the marker, the score."""
UNKNOWN = 8192
"""Longest sequence, tokens, where neither data nor configuration says one."""
CPU_BLOCK = 128
"""Tokens of a cache block on CPU, vLLM's own choice."""
GIB = 2**30
WIDTH = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class EngineShape:
    """What of a judge's architecture an engine's limits depend on."""

    longest: int
    """Longest sequence the model was made for, tokens."""
    recurrent: bool
    """Whether some layers are recurrent (linear attention): Qwen3.5."""
    attention_layers: int
    """Layers with a key-value cache."""
    heads: int
    kv_heads: int
    head_dim: int
    vision_heads: int | None
    """None where config.json does not say."""

    @classmethod
    def of(cls, folder: Path) -> EngineShape:
        """Of a judge folder. Raises JudgeError for a model without a vision tower."""
        config = json.loads((Path(folder) / "config.json").read_text())
        text, vision = config.get("text_config", config), config.get("vision_config")
        if vision is None:
            kind = config.get("model_type", "unknown")
            raise JudgeError(
                f"{folder} must hold a vision-language model, its config.json (model_type {kind}) has no vision_config;"
                " a text-only model cannot judge images"
            )
        kinds = text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]
        heads = text["num_attention_heads"]
        return cls(
            longest=text.get("max_position_embeddings", 2**31),
            recurrent=any("linear" in kind or "recurrent" in kind for kind in kinds),
            attention_layers=sum("attention" in kind and "linear" not in kind for kind in kinds),
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            vision_heads=vision.get("num_heads") or vision.get("num_attention_heads"),
        )

    def cache_bytes(self, tokens: int, width: int) -> int:
        """Key-value cache of one sequence, attention layers only. width: bytes of a value."""
        return 2 * self.attention_layers * self.kv_heads * self.head_dim * width * tokens


def settled(rollout: RolloutSection, folder: Path, need: Need | None = None) -> RolloutSection:
    """The section with every null replaced by what the engine is started with; settling twice changes nothing.

    Args: folder: the judge's. need: the longest question of the data, None where the data is not known.
    Raises: ConfigError for what vLLM refuses at its start, or cannot hold; JudgeError for a text-only model."""
    shape, on_gpu = EngineShape.of(folder), rollout.gpus > 0
    refuse_layout(Path(folder))
    _refuse_dtype(rollout, shape)
    _refuse_split(tensor_parallel(rollout), shape)
    length = rollout.max_model_len
    if length is None:
        wanted = UNKNOWN if need is None else need.tokens + max(rollout.max_new_tokens, DIRECT)
        length = min(-(-wanted // STEP) * STEP, shape.longest)
    elif length > shape.longest:
        raise ConfigError(
            f"rollout.max_model_len must be at most {shape.longest}, the longest sequence the judge was made for, got"
            f" {length}"
        )
    chunked = on_gpu if rollout.chunked_prefill is None else rollout.chunked_prefill
    prefix = (on_gpu or not shape.recurrent) if rollout.prefix_caching is None else rollout.prefix_caching
    if shape.recurrent and prefix and not chunked:
        raise ConfigError(
            "rollout.prefix_caching must be false where rollout.chunked_prefill is false and the judge has recurrent"
            " layers, got true: vLLM caches their state at block borders only"
        )
    image = rollout.largest_image or (need.image if need is not None else None)
    made = rollout.model_copy(
        update={
            "max_model_len": length,
            "max_batched_tokens": _batched(rollout, length, chunked),
            "chunked_prefill": chunked,
            "prefix_caching": prefix,
            "largest_image": image,
            "enforce_eager": not on_gpu if rollout.enforce_eager is None else rollout.enforce_eager,
            "kv_cache_gib": rollout.kv_cache_gib or _cache_gib(rollout, length, shape),
            "gpu_memory_frac": rollout.gpu_memory_frac or VLLM_SHARE * (min(rollout.gpus, 1.0) if on_gpu else 1.0),
        }
    )
    _refuse_cache(made, shape)
    return made


def tensor_parallel(rollout: RolloutSection) -> int:
    """Processes that one engine is split over: rollout.gpus above 1, else 1, unless the configuration says it."""
    return rollout.tensor_parallel or max(1, int(rollout.gpus))


def limits_text(rollout: RolloutSection, need: Need | None) -> str:
    """A settled section for the plan, in one line."""
    why = ""
    if need is not None:
        why = f" ({need.tokens} of the longest question with its image, {rollout.max_new_tokens} of the output)"
    image = "" if rollout.largest_image is None else ", largest image {1} x {0}".format(*rollout.largest_image)
    on = {True: "on", False: "off"}
    return (
        f"max_model_len {rollout.max_model_len}{why}, max_batched_tokens"
        f" {rollout.max_batched_tokens}, chunked prefill {on[rollout.chunked_prefill]}, prefix caching"
        f" {on[rollout.prefix_caching]}, CUDA graphs {on[not rollout.enforce_eager]}{image}"
        + (f", tensor parallel {tensor_parallel(rollout)}" if tensor_parallel(rollout) > 1 else "")
        + (f", {rollout.gpu_memory_frac:.2g} of a GPU's memory" if rollout.gpus > 0 else "")
    )


def _batched(rollout: RolloutSection, length: int, chunked: bool) -> int:
    given = rollout.max_batched_tokens
    if given is None:
        return max(BATCHED_TOKENS, rollout.max_num_seqs, 0 if chunked else length)
    if not chunked and given < length:
        raise ConfigError(
            f"rollout.max_batched_tokens must be at least {length}, the longest question and output, where the engine"
            f" does not split a question over two steps (rollout.chunked_prefill), got {given}"
        )
    return given


def _refuse_dtype(rollout: RolloutSection, shape: EngineShape) -> None:
    if shape.recurrent and rollout.gpus == 0 and rollout.dtype == "float32":
        raise ConfigError(
            "rollout.dtype must be bfloat16 for a judge with recurrent layers on CPU, got float32: vLLM has its kernels"
            " in 16 bit only"
        )


def _refuse_split(parts: int, shape: EngineShape) -> None:
    if parts == 1:
        return
    # vLLM copies key-value heads where there are fewer than parts
    broken = [
        f"{count} {name}"
        for name, count in (
            ("attention heads", shape.heads),
            ("key-value heads", max(shape.kv_heads, parts)),
            ("heads of the vision tower", shape.vision_heads),
        )
        if count is not None and count % parts
    ]
    if broken:
        raise ConfigError(
            f"rollout.gpus splits one engine over that many GPUs, {parts} does not divide the judge's"
            f" {', '.join(broken)}; take a number that does, or raise rollout.workers instead"
        )


def _cache_gib(rollout: RolloutSection, length: int, shape: EngineShape) -> float:
    """What the engine's sequences can fill, at least one whole one, at most the default: a preemption is slow, not
    wrong."""
    block = rollout.block_size or CPU_BLOCK
    one = shape.cache_bytes(-(-length // block) * block, WIDTH[rollout.dtype]) / GIB
    if shape.recurrent:  # their state is in it too, and is not counted here
        return max(one, CPU_CACHE_GIB)
    return max(one, min(rollout.max_num_seqs * one, CPU_CACHE_GIB))


def _refuse_cache(rollout: RolloutSection, shape: EngineShape) -> None:
    if rollout.gpus > 0:
        return  # depends on the GPU; `python -m zr_ray plan` knows it
    wanted = shape.cache_bytes(rollout.max_model_len, WIDTH[rollout.dtype]) / GIB
    if wanted > rollout.kv_cache_gib:
        raise ConfigError(
            f"rollout.kv_cache_gib must hold one sequence of {rollout.max_model_len} tokens, {wanted:.2g} GiB, got"
            f" {rollout.kv_cache_gib:g}; raise it, or lower rollout.max_model_len"
        )
