"""The built-in judge's folder: a Qwen3-VL of one to two million parameters with its own word tokenizer, complete but
untrained.

`build_tiny_judge` writes what transformers (`AutoModelForImageTextToText`, `AutoProcessor`) and vLLM (`LLM(folder)`)
load as it is; `jobs/builtin/pretrain_judge.py` trains it, and the trained one is the base judge in
`zr_ray/assets/judge`.
Left out on purpose: anything the training or scoring code could use to tell this judge from a full-size one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from zr_ray.errors import JudgeError
from zr_ray.rubric import DIMENSIONS, ScoringFormat

IMAGE_SIDE = 64
"""Pixels. The processor brings every image to this area; a 64x64 image passes untouched."""

MARKER = "score"
"""The word before the label; it never occurs inside a reasoning chain."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's names, ids 0..6 in this order."""

UNKNOWN = "<|unk|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{{ '<|im_start|>' }}{%- endif -%}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>' if message.role == 'assistant' else ' ' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>' }}{%- endif -%}"
)
"""image, question, <|im_start|>, answer, <|im_end|>: four tokens of overhead a request."""


@dataclass(frozen=True)
class TowerSize:
    """Size of the vision tower. One visual token covers patch x merge pixels a side: 16 tokens an image by default."""

    patch: int = 8
    """Pixels of a patch side."""
    merge: int = 2
    """Patches of a visual token's side."""
    depth: int = 3
    width: int = 96
    heads: int = 3
    deepstack: bool = True
    """Whether layer 1 has a merger of its own into the language model."""

    @property
    def grid(self) -> int:
        """Visual tokens per side."""
        return IMAGE_SIDE // (self.patch * self.merge)


def tiny_scoring_format() -> ScoringFormat:
    """The tiny judge's format: the dimension's name and the prompt as question, `<chain> score <label>` as answer."""
    return ScoringFormat(
        marker=MARKER, system="", questions={d: f"{d} {{prompt}}" for d in DIMENSIONS}, direct_prefix=""
    )


def build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer: white-space split, one id a word; specials first, then labels, marker, dimensions, the
    vocabulary.

    Args: vocabulary: words without white space; repetitions are dropped.   Raises: JudgeError on a word with white
    space or no words.
    """
    bad = [word for word in vocabulary if word.split() != [word]]
    if bad or not vocabulary:
        raise JudgeError(
            f"vocabulary needs words without white space, got {bad[:5] if bad else 'none'}; split them first"
        )
    scoring = tiny_scoring_format()
    words = dict.fromkeys([*SPECIAL_TOKENS, UNKNOWN, *scoring.labels, MARKER, *DIMENSIONS, *vocabulary])
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, tower: TowerSize) -> Qwen3VLProcessor:
    """Image processor of the tower's patches, values to [-1, 1]; area fixed to 64x64 pixels, sides to multiples of
    patch x merge."""
    area = IMAGE_SIDE * IMAGE_SIDE
    vision = dict(
        patch_size=tower.patch, merge_size=tower.merge, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": area, "longest_edge": area}, **vision),
        tokenizer=tokenizer,
        # two frames at most: vLLM sizes its profiling run by this
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": area, "longest_edge": 2 * area},
            min_frames=2,
            max_frames=2,
            cap_pixels_per_frame=False,
            **vision,
        ),
        chat_template=CHAT_TEMPLATE,
    )


@dataclass(frozen=True)
class TinySize:
    """Size of the language model; heads have 32 dimensions."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, size: TinySize = TinySize(), tower: TowerSize = TowerSize()
) -> Qwen3VLConfig:
    """Architecture of a tiny judge; raises JudgeError if heads or patches do not fit."""
    if size.heads % size.kv_heads:
        raise JudgeError(f"heads must be a multiple of kv_heads, got {size.heads} and {size.kv_heads}")
    if IMAGE_SIDE % (tower.patch * tower.merge) or tower.width % (4 * tower.heads):
        raise JudgeError(f"patch x merge must divide {IMAGE_SIDE} and 4 x heads the width, got {tower}")
    token_id = tokenizer.convert_tokens_to_ids
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=token_id("<|im_end|>"),
        pad_token_id=token_id("<|endoftext|>"),
    )
    vision = dict(
        depth=tower.depth,
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        num_heads=tower.heads,
        patch_size=tower.patch,
        spatial_merge_size=tower.merge,
        temporal_patch_size=2,
        out_hidden_size=size.width,
        num_position_embeddings=(IMAGE_SIDE // tower.patch) ** 2,
        deepstack_visual_indexes=[1] if tower.deepstack else [],
        initializer_range=0.02,
    )
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def build_tiny_judge(
    folder: Path, vocabulary: Sequence[str], seed: int, size: TinySize = TinySize(), tower: TowerSize = TowerSize()
) -> None:
    """Write a complete, untrained judge folder: weights, tokenizer, processor, generation config, scoring format.

    Args: folder: made if missing; files of the same names are overwritten. vocabulary: words of prompts and reasoning
        chains. seed: of the random weights; the caller's random state is left as it was. size: of the language model.
        tower: of the vision tower.
    Raises: JudgeError on an unusable vocabulary."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(tiny_config(tokenizer, size, tower)).float()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.generation_config.bos_token_id = None
    model.save_pretrained(folder)
    build_processor(tokenizer, tower).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_scoring_format().save(folder)
    config = json.loads((folder / "config.json").read_text())
    if config["text_config"]["vocab_size"] != len(tokenizer):
        raise JudgeError(
            f"the saved config has vocab_size {config['text_config']['vocab_size']}, the tokenizer {len(tokenizer)}"
            " tokens"
        )
