"""SD3, FLUX.1 and Qwen-Image adapters at tiny random size against diffusers' own pipelines: the same noise gives the
same image."""

import pytest
import torch

from zr_ray.models.generators.adapter import Picture, rollout
from zr_ray.models.generators.flux import FluxAdapter
from zr_ray.models.generators.qwen_image import QwenImageAdapter
from zr_ray.models.generators.sd3 import StableDiffusion3Adapter

PROMPTS = ["a red circle", "a big blue square on a table"]


def tokenizer(length):
    """Words as tokens, each prompt closed by an end token, as the families' tokenizers close theirs."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<end>", *dict.fromkeys(" ".join(PROMPTS).split())]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=length
    )


def clip(kind):
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3, vocab_size=20,
        projection_dim=32,         bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=16,
    )  # fmt: skip
    return kind(config)


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=20, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0)
    )


def scheduler(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3():
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4, 4), layers_per_block=1, latent_channels=4,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, scheduler=scheduler(shift=3.0),
        text_encoder=clip(CLIPTextModelWithProjection), text_encoder_2=clip(CLIPTextModelWithProjection),
        text_encoder_3=t5(),
        tokenizer=tokenizer(16), tokenizer_2=tokenizer(16), tokenizer_3=tokenizer(16),
    )  # fmt: skip
    return StableDiffusion3Adapter(pipeline, Picture(32, 32, 12)), {"max_sequence_length": 12}


def flux():
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=32, block_out_channels=(4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = FluxPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler(use_dynamic_shifting=True),
        text_encoder=clip(CLIPTextModel), text_encoder_2=t5(), tokenizer=tokenizer(16), tokenizer_2=tokenizer(16),
    )  # fmt: skip
    return FluxAdapter(pipeline, Picture(32, 32, 12), 2.5), {"max_sequence_length": 12}


def qwen_image():
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=24, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1] * 4, latents_std=[0.7, 1.0, 1.3, 1.5],
    )  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    pipeline = QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=scheduler(use_dynamic_shifting=True),
        text_encoder=encoder,
        tokenizer=tokenizer(64),
    )
    pipeline.prompt_template_encode_start_idx = 10  # of a tokenizer of words
    return QwenImageAdapter(pipeline, Picture(32, 32, 24)), {"max_sequence_length": 24}


def built(name):
    """Every weight random, also those that start as zeros, so that nothing is hidden behind one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapter, options = {"sd3": sd3, "flux": flux, "qwen_image": qwen_image}[name]()
        with torch.no_grad():
            for value in adapter.transformer.parameters():
                value.add_(torch.randn(value.shape), alpha=0.1)
    return adapter, options


@pytest.mark.parametrize(
    ("name", "plain", "guided", "scale"),
    [
        ("sd3", {"guidance_scale": 1.0}, {"guidance_scale": 4.0}, 4.0),
        (
            "flux",
            {"guidance_scale": 2.5},
            {"guidance_scale": 2.5, "true_cfg_scale": 4.0, "negative_prompt": ["", ""]},
            4.0,
        ),
        ("qwen_image", {"true_cfg_scale": 1.0}, {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}, 4.0),
    ],
)  # fmt: skip
def test_same_noise_same_image_as_the_pipeline(name, plain, guided, scale):
    adapter, options = built(name)
    conditions, empty = adapter.encode(PROMPTS), adapter.encode(["", ""])
    noise = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(0))
    common = dict(height=32, width=32, num_inference_steps=3, latents=noise, output_type="pt") | options
    for told, weight in ((plain, 1.0), (guided, scale)):

        def velocity(x, sigma, weight=weight):
            v = adapter.velocity(x, sigma, conditions)
            return adapter.guide(v, adapter.velocity(x, sigma, empty), weight) if adapter.guided(weight) else v

        with torch.no_grad():
            made = adapter.decode(rollout(velocity, noise, adapter.sigmas(3)).clean)
        wanted = adapter.pipeline(list(PROMPTS), **common, **told).images
        assert wanted.std() > 1e-3
        assert (made - wanted).abs().max() < 1e-5, told
    latents = noise.clone().requires_grad_()
    adapter.decode(latents).sum().backward()
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image"])
def test_lora_targets_exist_in_the_transformer(name):
    adapter, _ = built(name)
    layers = [layer for layer, _ in adapter.transformer.named_modules()]
    assert all(any(layer.endswith(target) for layer in layers) for target in adapter.lora_targets)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image"])
def test_comfyui_names_hold_every_adapter_and_its_scale(name):
    """What ComfyUI adds to a weight, alpha / r up down under `transformer.<module>`, is what peft adds."""
    from peft import LoraConfig, get_peft_model_state_dict

    from zr_ray.errors import ConfigError
    from zr_ray.models.generators.save import comfyui_lora

    adapter, _ = built(name)
    torch.manual_seed(3)
    adapter.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=list(adapter.lora_targets))
    )
    layers = get_peft_model_state_dict(adapter.transformer)
    held = comfyui_lora(layers, 6, adapter.family)
    adapted = {n: m for n, m in adapter.transformer.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) == len(layers) / 2 > len(adapter.lora_targets)
    for module, layer in adapted.items():
        down, up, alpha = (
            held.pop(f"transformer.{module}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        torch.testing.assert_close(float(alpha) / len(down) * up @ down, layer.get_delta_weight("default"))
    assert not held, "no key is left over"
    with pytest.raises(ConfigError, match="linear layers, got layers.0.lora_magnitude_vector"):
        comfyui_lora({"layers.0.lora_magnitude_vector": torch.ones(2)}, 6, "sd3")
