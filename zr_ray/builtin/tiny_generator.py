"""The built-in generator's folder: what `ZImagePipeline.from_pretrained` loads, a thousand times smaller than Z-Image.

`build_tiny_generator` makes an untrained pipeline of diffusers' and transformers' own classes;
`jobs/builtin/pretrain_generator.py` trains it, and the trained one is `zr_ray/assets/generator`. Conventions are the
pipeline's: the transformer is fed 1 - sigma as time and its output is negated, so it predicts clean latents minus
noise; CFG is pos + w (pos - neg), so w is the usual weight minus 1.
Left out on purpose: anything that tells this generator from Z-Image to the code that trains it with rewards.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.builtin.patch_codec import build_autoencoder
from zr_ray.errors import CheckpointError
from zr_ray.world.scene import COLORS, PHRASES, SHAPES, SIZES

IMAGE_SIDE = 64
"""Pixels."""
MAX_PROMPT_TOKENS = 16
"""Pass as `max_sequence_length`: the longest prompt of the world has 9 tokens, and the pipeline's default of 512 costs
time."""
SAMPLING_STEPS = 8
"""Steps that the shipped generator was measured with: object match .541 +- .022 (12 steps: .562), at two thirds of the
time."""
GUIDANCE_SCALE = 1.5
"""Guidance weight w of that measurement, as in pos + w (pos - neg): the usual weight minus 1."""
SAMPLING_BATCH = 8
"""Images in one call; 8 to 32 take the same time an image on two CPU cores, one alone three times as much."""
END = "<|im_end|>"
PAD = "<|endoftext|>"
UNKNOWN = "<|unk|>"
CHAT_TEMPLATE = "{%- for message in messages -%}{{ message.content + ' " + END + "' }}{%- endfor -%}"
"""The prompt's words and one end token, which alone stands for the empty prompt of classifier-free guidance."""
OPEN_GATE = 0.5
"""What every residual branch is multiplied by at the start, at all noise levels."""
ASSET = Path(__file__).resolve().parent.parent / "assets" / "generator"
"""The trained generator that is shipped with the package."""


@dataclass(frozen=True)
class GeneratorSizes:
    """Dimensions of the transformer and the text encoder. Defaults: 11.6 MB of float32 in all."""

    width: int = 144
    """A multiple of 12 keeps the feed-forward width, 8/3 of it, even and fast."""
    layers: int = 5
    refiner_layers: int = 1
    heads: int = 4
    text_width: int = 64
    text_layers: int = 3
    """The pipeline reads the last but one hidden state, so the last layer never speaks."""
    latent_channels: int = 16
    shift: float = 3.0
    """Static shift of the noise levels, Z-Image's own value: sigma -> 3 sigma / (1 + 2 sigma)."""


def build_tokenizer():
    """Word-level tokenizer over the words that prompts of the world are made of, lower-cased by its own normalizer, so
    that whoever loads the folder asks for the same picture."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    phrases = [word for phrase in PHRASES.values() for word in phrase.split()]
    words = dict.fromkeys([PAD, END, UNKNOWN, *SIZES, *COLORS, *SHAPES, *phrases])
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.normalizer, core.pre_tokenizer = Lowercase(), WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_PROMPT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _build_text_encoder(tokenizer, width: int, layers: int):
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 32,
            head_dim=32,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            dtype="float32",
            initializer_range=0.1,
        )
    )


def _build_transformer(sizes: GeneratorSizes):
    from diffusers import ZImageTransformer2DModel

    head = sizes.width // sizes.heads
    row = (
        head // 4 * 2
    )  # rotary numbers for the row, even; the column gets the rest, the caption none: see PackedTransformer
    model = ZImageTransformer2DModel(
        in_channels=sizes.latent_channels,
        dim=sizes.width,
        n_layers=sizes.layers,
        n_refiner_layers=sizes.refiner_layers,
        n_heads=sizes.heads,
        n_kv_heads=sizes.heads,
        cap_feat_dim=sizes.text_width,
        axes_dims=[0, row, head - row],
        axes_lens=[128, 16, 16],
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if (
                "adaLN_modulation" in name
            ):  # else blocks start as noise in time: its features turn up to 1000 radians from sigma 0 to 1
                value.zero_()
            elif value.ndim == 2 and "pad_token" not in name:
                torch.nn.init.xavier_uniform_(value)
            elif name.endswith("bias"):
                value.zero_()
        for block in [*model.layers, *model.noise_refiner]:
            bias = block.adaLN_modulation[0].bias.view(
                4, sizes.width
            )  # scale and gate of attention, scale and gate of feed-forward
            bias[1::2] = math.atanh(OPEN_GATE)
        for final in model.all_final_layer.values():  # a model that starts by predicting 0 has nothing to unlearn
            final.linear.weight.zero_()
    return model


def build_tiny_generator(codec: dict[str, Tensor], sizes: GeneratorSizes, seed: int):
    """An untrained `ZImagePipeline` around a fitted codec (`fit_codec`); the caller's random state is left as it
    was."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                num_train_timesteps=1000, shift=sizes.shift, use_dynamic_shifting=False
            ),
            vae=build_autoencoder(codec),
            text_encoder=_build_text_encoder(tokenizer, sizes.text_width, sizes.text_layers),
            tokenizer=tokenizer,
            transformer=_build_transformer(sizes),
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_generator(folder: Path = ASSET):
    """The pipeline of a folder, in float32 and evaluation mode, without progress bars. Raises: CheckpointError if there
    is none."""
    from diffusers import ZImagePipeline

    if not (Path(folder) / "model_index.json").is_file():
        raise CheckpointError(
            f"wanted a ZImagePipeline folder, got {folder} without model_index.json; name one that save_pretrained"
            " wrote"
        )
    pipeline = ZImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unread(tokenizer, prompts: Sequence[str]) -> list[str]:
    """What the generator does not read of prompts, one line a kind: words that it does not know (each becomes UNKNOWN,
    the picture of nonsense), words behind the limit (cut off). Empty if it reads everything."""
    unknown: Counter[str] = Counter()
    strange, cut = set(), []
    for prompt in prompts:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
        encoding = tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
        words = [text[a:b] for i, (a, b) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
                 if i == tokenizer.unk_token_id]  # fmt: skip
        unknown.update(words)
        strange |= {prompt} if words else set()
        cut += [prompt] if len(encoding["input_ids"]) > MAX_PROMPT_TOKENS else []
    lines = []
    if strange:
        listed = ", ".join(repr(word) for word, _ in unknown.most_common(5))
        lines.append(
            f"{len(strange)} of {len(set(prompts))} prompts hold words that the generator does not know ({listed};"
            f" {sum(unknown.values())} in all), for example {min(strange)[:60]!r}"
        )
    if cut:
        lines.append(
            f"{len(set(cut))} of {len(set(prompts))} prompts have more than {MAX_PROMPT_TOKENS - 1} words and are cut,"
            f" for example {min(cut)[:60]!r}"
        )
    return lines


@torch.no_grad()
def generate(
    pipeline, prompts: list[str], *, seed: int, steps: int, guidance_scale: float, batch: int = SAMPLING_BATCH
) -> Tensor:
    """Images by the pipeline itself, one noise per prompt, independent of the batch size.

    Warns of words that it does not read (`unread`).
    Args: guidance_scale: w of pos + w (pos - neg); 0 is sampling without guidance.   Returns: [N, 64, 64, 3] uint8."""
    for line in unread(pipeline.tokenizer, prompts):
        warnings.warn(line, stacklevel=2)
    noise = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(len(prompts))]
    images = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        made = pipeline(
            list(prompts[part]),
            height=IMAGE_SIDE,
            width=IMAGE_SIDE,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=noise[part],
            max_sequence_length=MAX_PROMPT_TOKENS,
            output_type="pt",
        ).images
        images.append((made * 255).round().to(torch.uint8).movedim(1, -1).cpu())
    return torch.cat(images)
