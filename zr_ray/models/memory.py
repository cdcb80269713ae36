"""How much GPU memory a role needs, estimated from the judge's folder alone: no GPU, no weights read.

    learner   weights + gradients + optimizer (+ reference) + DeepSpeed's buffers + activations + logits of one chunk,
              less what is offloaded
    rollout   weights + key-value cache

One formula for `--dry-run` and `python -m zr_ray plan`. Exact parts (weights, optimizer state) are a lower bound, and
what a plan is refused by; under ZeRO-3 in fp32 they were measured (`tests/workers/test_peak_memory.py`), the other
stages are read from DeepSpeed's source. Activations and logits are a rule of thumb.
Left out on purpose: fragmentation, and what the CUDA context takes (about half a GiB).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.workers import VLLM_SHARE, LearnerSection, RolloutSection
from zr_ray.errors import JudgeError, PlacementError

GIB = 2**30
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
UNKNOWN_LENGTH = 8192
"""Longest sequence where the configuration does not say one, tokens; as `models/engine_limits.py`."""
PROJECTION_CHUNK = 4096
"""Positions projected to the vocabulary at a time (`models/judge.py`)."""
MEMORY_MARGIN = 0.92
"""Above this part of a GPU an estimate is said to be tight; drivers and the CUDA context keep about 5 %."""
ON_HOST = {
    "none": (),
    "optimizer": ("gradients", "optimizer"),
    "parameters": ("weights", "gradients", "optimizer", "reference"),
}
"""`learner.offload` -> parts of a learner's memory that are not on its GPU."""
REDUCE_BUCKET, LIVE = 0.5e9, 1e9
"""Values that DeepSpeed gathers before it reduces gradients, and weights that it leaves gathered under ZeRO-3, by
default (reduce_bucket_size, stage3_max_live_parameters of 0.19); not divided by ranks."""
ROW_TOKENS = 1024
"""Length of a packed row where the configuration does not bound it; sets the size of the attention matrix."""


@dataclass(frozen=True)
class JudgeShape:
    """The sizes of a judge that memory depends on."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    longest: int
    """Longest sequence the model was made for, tokens."""
    vocabulary: int = 0
    intermediate: int = 0
    """Width of the MLP."""
    cache_layers: int | None = None
    """Layers with a key-value cache; None: all."""

    def lora_parameters(self, rank: int) -> int:
        """Values of adapters of this rank on attention and MLP of every layer: rank (inputs + outputs) each."""
        attention = 2 * (self.hidden + self.heads * self.head_dim) + 2 * (self.hidden + self.kv_heads * self.head_dim)
        return rank * self.layers * (attention + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True)
class Estimate:
    """Memory of one worker, GiB."""

    parts: dict[str, float]
    """Name -> GiB, in the order of a sum."""
    least: float
    """What it needs in any case: the exact parts."""
    remark: str = ""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())


def judge_shape(folder: Path) -> JudgeShape:
    """Sizes of the judge in a Hugging Face folder; without weights (a configuration alone) its parameters are counted
    on an empty model.   Raises: JudgeError if there is neither."""
    config = json.loads((Path(folder) / "config.json").read_text())
    text = config.get("text_config", config)
    files = sorted(Path(folder).glob("*.safetensors"))
    parameters = sum(_parameters(path) for path in files) if files else _counted(Path(folder))
    heads = text["num_attention_heads"]
    kinds = text.get("layer_types") or []
    return JudgeShape(
        parameters=parameters,
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        longest=text["max_position_embeddings"],
        vocabulary=text.get("vocab_size", 0),
        intermediate=text.get("intermediate_size") or 0,
        cache_layers=sum("linear" not in kind for kind in kinds) if kinds else None,
    )


def _counted(folder: Path) -> int:
    """Parameters of the architecture of a config.json, on a model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise JudgeError(
            f"{folder} has no *.safetensors file, and no vision-language model in config.json whose parameters could be"
            f" counted ({str(error).splitlines()[0]}): memory cannot be estimated; give the folder of the weights"
        ) from error
    return sum(p.numel() for p in model.parameters())


def _parameters(path: Path) -> int:
    """Number of values in a safetensors file, from its header: 8 bytes length, then JSON with shapes."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for edge in tensor["shape"]:
                size *= edge
            count += size
    return count


def learner_memory(judge: JudgeShape, config: LearnerSection, keeps_reference: bool) -> Estimate:
    """One DeepSpeed rank with AdamW (ZeRO, arXiv 1910.02054, section 3.1: K = 12 bytes a parameter in mixed precision;
    in fp32 too, as DeepSpeed keeps weights of its own beside the model's there).

    Args: keeps_reference: the frozen policy of the KL term stays beside the trained one; with LoRA it is a second
        adapter."""
    n, ranks, stage = judge.parameters / GIB, config.workers, config.zero_stage
    width = BYTES[config.dtype]
    optimizer = 12 if stage else 8  # two fp32 moments, and DeepSpeed's own fp32 weights
    trained = judge.lora_parameters(config.lora_rank) / GIB if config.lora_rank else n
    parts = {
        "weights": width * n / (ranks if stage == 3 else 1),
        "gradients": width * trained / (ranks if stage >= 2 else 1),
        "optimizer": optimizer * trained / (ranks if stage >= 1 else 1),
    }
    if keeps_reference:
        parts["reference"] = width * (trained if config.lora_rank else n) / (ranks if stage == 3 else 1)
    host = {name: parts.pop(name) for name in ON_HOST[config.offload] if name in parts}
    least = sum(parts.values())
    if stage:
        parts["gradient bucket"] = width * min(trained, REDUCE_BUCKET / GIB)
    if stage == 3:
        parts["weights in use"] = width * min(n, LIVE / GIB)
    tokens = config.max_tokens_per_microbatch
    parts["activations"] = activations(judge, tokens, width, config.gradient_checkpointing)
    if judge.vocabulary:
        # logits in the model's width and in fp32, and their gradient, of one chunk of positions
        parts["logits"] = min(tokens, PROJECTION_CHUNK) * judge.vocabulary * (width + 8) / GIB
    remark = f"{sum(host.values()):.3g} GiB of {', '.join(host)} in host memory" if host else ""
    return Estimate(parts, least, remark)


def activations(judge: JudgeShape, tokens: int, width: int, checkpointing: bool = False) -> float:
    """GiB kept for the backward of one micro-batch (Korthikanti et al., arXiv 2205.05198, Eq. 1: s b h (34 + 5 a s / h)
    bytes a layer in 16 bit, nothing recomputed). checkpointing: layer inputs, 2 s b h bytes each, and one layer of the
    rest. tokens: s b of the micro-batch. width: bytes of a value."""
    row = min(ROW_TOKENS, tokens, judge.longest)
    per_layer = tokens * judge.hidden * (34 + 5 * judge.heads * row / judge.hidden)
    kept = judge.layers * 2 * tokens * judge.hidden + per_layer if checkpointing else judge.layers * per_layer
    return kept * width / 2 / GIB


def rollout_memory(judge: JudgeShape, config: RolloutSection, gpu_gib: float) -> Estimate:
    """One GPU of a vLLM engine: its part of the weights, and the key-value cache that fills what vLLM may use. gpu_gib:
    memory of the GPU, or of the actor's part of it."""
    width, split = BYTES[config.dtype], max(1, int(config.gpus))
    weights = width * judge.parameters / split / GIB
    length = config.max_model_len or min(judge.longest, UNKNOWN_LENGTH)
    layers = judge.layers if judge.cache_layers is None else judge.cache_layers
    per_sequence = 2 * layers * judge.kv_heads * judge.head_dim * width * length / min(split, judge.kv_heads) / GIB
    cache = max(gpu_gib * VLLM_SHARE - weights, per_sequence)
    fit = int(cache / per_sequence)
    remark = f"the cache holds {fit} sequences of {length} tokens, rollout.max_num_seqs is {config.max_num_seqs}"
    return Estimate({"weights": weights, "cache": cache}, weights + per_sequence, remark)


def memory_text(estimate: Estimate, gpu_gib: float) -> str:
    """Sum and parts in one line. gpu_gib: 0 where the GPU is not known."""
    parts = " + ".join(f"{name} {gib:.3g}" for name, gib in estimate.parts.items())
    of = f" of {gpu_gib:g} GiB" if gpu_gib else " GiB (the memory of this GPU is not known)"
    tight = " TIGHT: expect out of memory" if gpu_gib and estimate.total > MEMORY_MARGIN * gpu_gib else ""
    return f"{estimate.total:.3g}{of}: {parts}{'; ' + estimate.remark if estimate.remark else ''}{tight}"


def check_memory(role: str, estimate: Estimate, gpu_gib: float) -> None:
    """Raise PlacementError if the exact parts alone exceed the GPU. gpu_gib: 0 where it is not known."""
    if gpu_gib and estimate.least > gpu_gib:
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in estimate.parts.items())
        raise PlacementError(
            f"a {role} worker needs at least {estimate.least:.1f} GiB ({parts}), its GPU has {gpu_gib:g}; "
            + ("raise learner.workers or learner.zero_stage, or " if role == "learner" else "")
            + "give the role a node type with more memory"
        )


def replica_memory(judge: JudgeShape, dtype: str) -> Estimate:
    """One replica of the reward service: weights, and the gradients' activations on top, which are not estimated."""
    weights = BYTES[dtype] * judge.parameters / GIB
    return Estimate({"weights": weights}, weights, "plus activations of replica.grad_items images")
