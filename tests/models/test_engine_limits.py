"""Limits of an engine follow model, data and configuration; what vLLM would refuse is refused before it starts."""

import json

import pytest
from real_judges import real_judge

from zr_ray.config.workers import RolloutSection
from zr_ray.data.run_data import Need
from zr_ray.errors import ConfigError, JudgeError
from zr_ray.models.engine_limits import EngineShape, limits_text, settled
from zr_ray.models.judge_text import JudgeText

TEXT = dict(
    num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_size=4096,
    max_position_embeddings=262144,
)  # fmt: skip
NEED = Need(1310, (1024, 1024))


@pytest.fixture()
def folder(tmp_path):
    def make(vision=True, **text):
        config = {"model_type": "qwen3_vl", "text_config": TEXT | text}
        config |= {"vision_config": {"num_heads": 16}} if vision else {}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def test_a_hub_model_gets_what_its_data_needs(folder):
    made = settled(RolloutSection(max_new_tokens=1000), folder(), NEED)
    assert made.max_model_len == 2368  # 2310 in steps of 64, not the model's 262,144
    assert made.max_batched_tokens == 8192 and not made.chunked_prefill and made.prefix_caching
    assert made.enforce_eager and made.largest_image == (1024, 1024)
    assert settled(made, folder(), None) == made
    assert "max_model_len 2368 (1310 of the longest question with its image, 1000 of the output)" in limits_text(
        made, NEED
    )


def test_a_question_that_cannot_be_split_fits_into_one_step(folder):
    long = Need(16500, (4096, 4096))
    made = settled(RolloutSection(max_new_tokens=1000, kv_cache_gib=8), folder(), long)
    assert made.max_batched_tokens == made.max_model_len == 17536
    with pytest.raises(ConfigError, match=r"max_batched_tokens must be at least 17536, .* got 9000"):
        settled(RolloutSection(max_new_tokens=1000, max_batched_tokens=9000, kv_cache_gib=8), folder(), long)
    on_gpu = settled(RolloutSection(max_new_tokens=1000, max_batched_tokens=9000, gpus=1), folder(), long)
    assert on_gpu.chunked_prefill and on_gpu.max_batched_tokens == 9000


def test_a_cache_holds_what_the_sequences_can_fill(judge_path, folder):
    """Of the built-in judge: 4 layers x (key + value) x 2 heads x 32 numbers of 4 bytes are 2 KiB a token."""
    made = settled(RolloutSection(max_num_seqs=256, max_model_len=100), judge_path)
    assert made.kv_cache_gib == 256 * 128 * 2048 / 2**30
    assert settled(RolloutSection(max_num_seqs=256, max_model_len=100, block_size=16), judge_path).kv_cache_gib == (
        256 * 112 * 2048 / 2**30
    )
    assert settled(RolloutSection(max_new_tokens=1000), folder(), NEED).kv_cache_gib == 1.0  # 256 of them need more
    assert settled(RolloutSection(kv_cache_gib=0.3), judge_path).kv_cache_gib == 0.3  # what is said stands


def test_recurrent_layers(folder):
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    shape = EngineShape.of(folder(layer_types=kinds))
    assert shape.recurrent and shape.attention_layers == 1
    cpu = settled(RolloutSection(dtype="bfloat16"), folder(layer_types=kinds), NEED)
    assert not cpu.prefix_caching and not cpu.chunked_prefill
    gpu = settled(RolloutSection(dtype="bfloat16", gpus=1), folder(layer_types=kinds), NEED)
    assert gpu.prefix_caching and gpu.chunked_prefill and not gpu.enforce_eager
    with pytest.raises(ConfigError, match="rollout.dtype must be bfloat16 for a judge with recurrent layers"):
        settled(RolloutSection(), folder(layer_types=kinds), NEED)
    with pytest.raises(ConfigError, match="rollout.prefix_caching must be false"):
        settled(RolloutSection(dtype="bfloat16", prefix_caching=True), folder(layer_types=kinds), NEED)


def test_a_shared_gpu_is_told_to_the_engine(folder):
    assert settled(RolloutSection(gpus=0.5), folder(), NEED).gpu_memory_frac == pytest.approx(0.45)
    assert settled(RolloutSection(gpus=1), folder(), NEED).gpu_memory_frac == pytest.approx(0.9)
    assert settled(RolloutSection(gpus=2), folder(), NEED).gpu_memory_frac == pytest.approx(0.9)
    assert settled(RolloutSection(gpus=0.5, gpu_memory_frac=0.3), folder(), NEED).gpu_memory_frac == 0.3


@pytest.mark.parametrize(
    ("rollout", "text", "words"),
    [
        (
            {"gpus": 3},
            {},
            "3 does not divide the judge's 32 attention heads, 8 key-value heads, 16 heads of the vision",
        ),
        ({"gpus": 16}, {"num_attention_heads": 24}, "16 does not divide the judge's 24 attention heads"),
        ({"max_model_len": 300000, "kv_cache_gib": 99}, {}, "must be at most 262144, the longest sequence"),
        ({"max_model_len": 8192, "kv_cache_gib": 0.01}, {}, "kv_cache_gib must hold one sequence of 8192 tokens"),
    ],
)
def test_what_an_engine_refuses(folder, rollout, text, words):
    with pytest.raises(ConfigError, match=words):
        settled(RolloutSection(**rollout), folder(**text), NEED)
    settled(RolloutSection(gpus=16), folder(), NEED)  # 8 key-value heads are copied to 16


def test_a_text_only_model_is_refused(folder):
    with pytest.raises(JudgeError, match="no vision_config; a text-only model cannot judge images"):
        settled(RolloutSection(), folder(vision=False), NEED)


def test_a_text_only_folder_is_refused_when_it_is_opened(tmp_path):
    from transformers import Qwen3Config

    judge = real_judge(tmp_path, "qwen3_vl", width=32)
    Qwen3Config(num_hidden_layers=1).save_pretrained(judge)
    with pytest.raises(JudgeError, match=r"model_type qwen3\) has no image_token_id; a text-only model"):
        JudgeText(judge)
