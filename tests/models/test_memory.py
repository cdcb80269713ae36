"""Memory by hand: parameters counted from a header, ZeRO's bytes a parameter, a key-value cache, the activations of
one layer."""

from __future__ import annotations

import json
import struct

import pytest

from zr_ray.config.workers import LearnerSection, RolloutSection
from zr_ray.errors import JudgeError
from zr_ray.models.memory import GIB, JudgeShape, activations, judge_shape, learner_memory, rollout_memory

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
    with pytest.raises(JudgeError, match=r"no \*.safetensors file, and no vision-language model in config.json"):
        judge_shape(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "stage", "ranks", "least"),
    [
        ("bfloat16", 1, 1, 2 + 2 + 12),  # the paper's 16 bytes a parameter
        ("bfloat16", 1, 4, 2 + 2 + 3),
        ("bfloat16", 2, 4, 2 + 0.5 + 3),
        ("bfloat16", 3, 4, 0.5 + 0.5 + 3),
        ("float32", 0, 1, 4 + 4 + 8),
        ("float32", 1, 1, 4 + 4 + 12),  # the engine's own weights
        ("float32", 3, 2, (4 + 4 + 12) / 2),
    ],
)
def test_learner_state_by_zero_stage(dtype, stage, ranks, least):
    config = LearnerSection(dtype=dtype, zero_stage=stage, workers=ranks)
    assert learner_memory(JUDGE, config, keeps_reference=False).least == pytest.approx(least)
    with_reference = learner_memory(JUDGE, config, keeps_reference=True)
    reference = (4 if dtype == "float32" else 2) / (ranks if stage == 3 else 1)
    assert with_reference.least == pytest.approx(least + reference)
    assert with_reference.total > with_reference.least, "activations come on top"
    width = 4 if dtype == "float32" else 2
    buffers = {"gradient bucket": 0.5e9 / GIB, "weights in use": 1e9 / GIB}
    kept = [name for name in buffers if stage == 3 or (stage and name == "gradient bucket")]
    assert {name: with_reference.parts.get(name) for name in buffers} == {
        name: pytest.approx(width * gib) if name in kept else None for name, gib in buffers.items()
    }, "whatever the ranks"


def test_activations_of_one_micro_batch():
    # rows of 32 tokens: 34 + 5 * 4 * 32 / 8 = 114 bytes for each of 32 * 8 values, two layers, 16 bit
    assert activations(JUDGE, 32, width=2) * GIB == pytest.approx(2 * 32 * 8 * 114)
    # with checkpointing the inputs of both layers and one layer of the rest
    assert activations(JUDGE, 32, 2, checkpointing=True) * GIB == pytest.approx(2 * 2 * 32 * 8 + 32 * 8 * 114)
    assert activations(JUDGE, 32, width=4) == pytest.approx(2 * activations(JUDGE, 32, width=2))


def test_rollout_cache_is_what_vllm_leaves():
    memory = rollout_memory(JUDGE, RolloutSection(dtype="bfloat16", max_model_len=48), gpu_gib=10)
    assert memory.parts == {"weights": 2.0, "cache": pytest.approx(7.0)}
    sequence = 2 * 2 * 2 * 16 * 2 * 48  # keys and values, layers, heads, width of a head, bytes, tokens
    assert memory.least == pytest.approx(2.0 + sequence / GIB)
    assert f"{int(7.0 * GIB / sequence)} sequences of 48 tokens" in memory.remark


def test_lora_trains_and_refers_through_adapters():
    shape = JudgeShape(GIB, 2, 8, 4, 2, 16, 64, vocabulary=100, intermediate=24)
    # per layer: q and o 8 + 64 each, k and v 8 + 32 each, three of the MLP 8 + 24 each
    assert shape.lora_parameters(3) == 3 * 2 * (2 * 72 + 2 * 40 + 3 * 32)
    config = LearnerSection(dtype="bfloat16", lora_rank=3, max_tokens_per_microbatch=64)
    memory = learner_memory(shape, config, keeps_reference=True)
    assert memory.parts["weights"] == 2.0 and memory.parts["optimizer"] + memory.parts["reference"] < 1e-4
    assert memory.parts["logits"] == pytest.approx(64 * 100 * 10 / GIB)


@pytest.mark.parametrize(
    ("stage", "offload", "least"), [(2, "optimizer", 2), (3, "optimizer", 0.5), (3, "parameters", 0)]
)
def test_what_is_offloaded_is_not_on_the_gpu(stage, offload, least):
    config = LearnerSection(dtype="bfloat16", zero_stage=stage, workers=4, offload=offload)
    memory = learner_memory(JUDGE, config, keeps_reference=False)
    assert memory.least == pytest.approx(least) and "optimizer" not in memory.parts
    moved = 0.5 + 3 + (0.5 if offload == "parameters" else 0)
    assert memory.remark.startswith(f"{moved:.3g} GiB of ") and memory.remark.endswith("optimizer in host memory")
    assert ("weights in use" in memory.parts) == (stage == 3)


def test_a_split_engine_holds_its_part():
    one, two = (
        rollout_memory(JUDGE, RolloutSection(dtype="bfloat16", max_model_len=48, gpus=n), gpu_gib=10) for n in (1, 2)
    )
    assert (one.parts["weights"], two.parts["weights"]) == (2.0, 1.0)
    assert two.least - 1.0 == pytest.approx((one.least - 2.0) / 2)


def test_parameters_of_a_configuration_alone_are_counted(judge_path, tmp_path):
    (tmp_path / "config.json").write_text((judge_path / "config.json").read_text())
    assert judge_shape(tmp_path).parameters == judge_shape(judge_path).parameters
