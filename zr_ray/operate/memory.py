"""How much GPU memory a role needs, estimated from the judge's folder alone: no GPU, no weights read, no torch.

Exact parts (weights, optimizer state) are a lower bound, and what `plan` refuses by; activations are a rule of thumb.
Left out on purpose: fragmentation, and what the CUDA context takes (about half a GiB).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.sections import VLLM_SHARE, LearnerSection, RolloutSection
from zr_ray.errors import JudgeError

GIB = 2**30
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
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
    """Sizes of the judge in a Hugging Face folder. Raises JudgeError if it has no safetensors weights."""
    config = json.loads((Path(folder) / "config.json").read_text())
    text = config.get("text_config", config)
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise JudgeError(
            f"{folder} has no *.safetensors file: memory cannot be estimated; give the folder of the weights"
        )
    heads = text["num_attention_heads"]
    return JudgeShape(
        parameters=sum(_parameters(path) for path in files),
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim", text["hidden_size"] // heads),
        longest=text["max_position_embeddings"],
    )


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
    """One DeepSpeed rank with AdamW (ZeRO, arXiv 1910.02054, section 3.1: K = 12 bytes a parameter in mixed precision).

    Args: keeps_reference: the frozen policy of the KL term stays beside the trained one."""
    n, ranks, stage = judge.parameters / GIB, config.workers, config.zero_stage
    width = BYTES[config.dtype]
    optimizer = 8 if config.dtype == "float32" else 12  # two fp32 moments; in bf16 also the fp32 weights
    parts = {
        "weights": width * n / (ranks if stage == 3 else 1),
        "gradients": width * n / (ranks if stage >= 2 else 1),
        "optimizer": optimizer * n / (ranks if stage >= 1 else 1),
    }
    if keeps_reference:
        parts["reference"] = width * n
    least = sum(parts.values())
    return Estimate(parts | {"activations": activations(judge, config.max_tokens_per_microbatch, width)}, least)


def activations(judge: JudgeShape, tokens: int, width: int) -> float:
    """GiB kept for the backward of one micro-batch (Korthikanti et al., arXiv 2205.05198, Eq. 1: s b h (34 + 5 a s / h)
    bytes a layer in 16 bit, nothing recomputed). tokens: s b of the micro-batch. width: bytes of a value."""
    row = min(ROW_TOKENS, tokens, judge.longest)
    per_layer = tokens * judge.hidden * (34 + 5 * judge.heads * row / judge.hidden)
    return judge.layers * per_layer * width / 2 / GIB


def rollout_memory(judge: JudgeShape, config: RolloutSection, gpu_gib: float) -> Estimate:
    """One vLLM engine: weights, and the key-value cache that fills what vLLM may use. gpu_gib: memory of its GPU."""
    width = BYTES[config.dtype]
    weights = width * judge.parameters / GIB
    length = config.max_model_len or judge.longest
    per_sequence = 2 * judge.layers * judge.kv_heads * judge.head_dim * width * length / GIB
    cache = max(gpu_gib * VLLM_SHARE - weights, per_sequence)
    fit = int(cache / per_sequence)
    remark = f"the cache holds {fit} sequences of {length} tokens, rollout.max_num_seqs is {config.max_num_seqs}"
    return Estimate({"weights": weights, "cache": cache}, weights + per_sequence, remark)


def replica_memory(judge: JudgeShape, dtype: str) -> Estimate:
    """One replica of the reward service: weights, and the gradients' activations on top, which are not estimated."""
    weights = BYTES[dtype] * judge.parameters / GIB
    return Estimate({"weights": weights}, weights, "plus activations of replica.grad_items images")
