"""Memory by hand: parameters counted from a header, ZeRO's bytes a parameter, a key-value cache, the activations of
one layer."""

from __future__ import annotations

import json
import struct

import pytest

from zr_ray.config.sections import LearnerSection, RolloutSection
from zr_ray.errors import JudgeError
from zr_ray.operate.memory import GIB, JudgeShape, activations, judge_shape, learner_memory, rollout_memory

JUDGE = JudgeShape(parameters=GIB, layers=2, hidden=8, heads=4, kv_heads=2, head_dim=16, longest=64)
"""2^30 parameters, so that bytes a parameter read as GiB."""


def test_shape_is_read_from_headers_alone(tmp_path):
    text = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 4, "max_position_embeddings": 99}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    for i, shape in enumerate(([5, 7], [2, 3, 4])):
        header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}, "__metadata__": {"format": "pt"}}
        raw = json.dumps(header).encode()
        (tmp_path / f"model-{i}.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert judge_shape(tmp_path) == JudgeShape(5 * 7 + 2 * 3 * 4, 3, 8, 4, 4, 2, 99)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 1}))
    with pytest.raises(JudgeError, match="no \\*.safetensors"):
        judge_shape(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "stage", "ranks", "least"),
    [
        ("bfloat16", 1, 1, 2 + 2 + 12),  # the paper's 16 bytes a parameter
        ("bfloat16", 1, 4, 2 + 2 + 3),
        ("bfloat16", 2, 4, 2 + 0.5 + 3),
        ("bfloat16", 3, 4, 0.5 + 0.5 + 3),
        ("float32", 1, 1, 4 + 4 + 8),
    ],
)
def test_learner_state_by_zero_stage(dtype, stage, ranks, least):
    config = LearnerSection(dtype=dtype, zero_stage=stage, workers=ranks)
    assert learner_memory(JUDGE, config, keeps_reference=False).least == pytest.approx(least)
    with_reference = learner_memory(JUDGE, config, keeps_reference=True)
    assert with_reference.least == pytest.approx(least + (4 if dtype == "float32" else 2))
    assert with_reference.total > with_reference.least, "activations come on top"


def test_activations_of_one_micro_batch():
    # rows of 32 tokens: 34 + 5 * 4 * 32 / 8 = 114 bytes for each of 32 * 8 values, two layers, 16 bit
    assert activations(JUDGE, 32, width=2) * GIB == pytest.approx(2 * 32 * 8 * 114)
    assert activations(JUDGE, 32, width=4) == pytest.approx(2 * activations(JUDGE, 32, width=2))


def test_rollout_cache_is_what_vllm_leaves():
    memory = rollout_memory(JUDGE, RolloutSection(dtype="bfloat16", max_model_len=48), gpu_gib=10)
    assert memory.parts == {"weights": 2.0, "cache": pytest.approx(7.0)}
    sequence = 2 * 2 * 2 * 16 * 2 * 48  # keys and values, layers, heads, width of a head, bytes, tokens
    assert memory.least == pytest.approx(2.0 + sequence / GIB)
    assert f"{int(7.0 * GIB / sequence)} sequences of 48 tokens" in memory.remark
