"""A student with linear-attention layers (Qwen3.5) cannot branch: its questions are unrolled, and the result is as
exact."""

import shutil

import pytest
import torch
from transformers import AutoConfig, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from zr_ray.models.judge_text import JudgeText
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS

PROMPTS = ["a small red circle", "a blue square left of a large green star"]


@pytest.fixture(scope="module")
def student(judge_path, tmp_path_factory):
    """A random Qwen3.5 of alternating linear and full attention with the built-in judge's words and processor."""
    folder = tmp_path_factory.mktemp("recurrent") / "judge"
    shutil.copytree(judge_path, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    base = AutoConfig.from_pretrained(judge_path)
    text = dict(
        vocab_size=base.text_config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        max_position_embeddings=512,
        layer_types=["linear_attention", "full_attention"] * 2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
        pad_token_id=0,
        eos_token_id=base.text_config.eos_token_id,
        bos_token_id=None,
    )
    vision = dict(
        depth=2,
        hidden_size=48,
        intermediate_size=96,
        num_heads=2,
        patch_size=8,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=64,
        num_position_embeddings=64,
    )
    tokens = {
        name: getattr(base, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3_5ForConditionalGeneration(
            Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter) * (parameter.ndim > 1)
    model.float().save_pretrained(folder)
    made = Student(folder)
    made.text.tokenizer = JudgeText(judge_path).tokenizer  # AutoTokenizer makes a byte-level one of any Qwen3.5 folder
    return made


def test_unrolled_questions_equal_separate_forwards(student):
    from test_student import separate_forwards

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert not student.questions.branching and len(student.questions.layout(PROMPTS[0], DIMENSIONS, (8, 8))) == 4
    expected = separate_forwards(student, images, PROMPTS)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-2
    pixels = images.clone().requires_grad_()
    got = student(pixels, PROMPTS)
    torch.testing.assert_close(got.log_q.detach(), expected, atol=1e-5, rtol=0)
    got.mu.sum().backward()
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
