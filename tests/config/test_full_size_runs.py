"""The named runs of full-size models: they load, and their plans are right about memory, on configurations alone.

The shapes are those of the models' cards; weights are neither there nor needed.
"""

import json
from pathlib import Path

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config
from zr_ray.config.risd import RisdConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import ConfigError, PlacementError
from zr_ray.loops.training import memory_facts
from zr_ray.models.engine_limits import EngineShape, settled
from zr_ray.models.memory import judge_shape, learner_memory, rollout_memory

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
QWEN3_VL_4B = {
    "model_type": "qwen3_vl", "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text", "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 262144, "tie_word_embeddings": True,
    },
    "vision_config": {
        "model_type": "qwen3_vl", "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17],
    },
}  # fmt: skip
LAYERS = ["linear_attention"] * 3 + ["full_attention"]
QWEN3_5_27B = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 5120, "intermediate_size": 17408,
        "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "max_position_embeddings": 262144, "layer_types": LAYERS * 16,
    },
    "vision_config": {
        "model_type": "qwen3_5", "depth": 27, "hidden_size": 1152, "num_heads": 16, "out_hidden_size": 5120,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, config in {"4b": QWEN3_VL_4B, "27b": QWEN3_5_27B}.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps(config))
    return made


RUNS = {
    "qwen3_vl_4b": GdsoConfig, "qwen3_5_27b_teacher": GdsoConfig, "qwen3_5_9b_student": RisdConfig,
    "z_image_t2i": T2iConfig,
}  # fmt: skip


@pytest.mark.parametrize(("name", "model"), RUNS.items())
def test_they_load(name, model):
    assert load_config(model, CONFIGS / f"{name}.yaml", []) != model()


def test_a_4b_judge_shares_one_gpu(folders):
    config = load_config(GdsoConfig, CONFIGS / "qwen3_vl_4b.yaml", [])
    shape = judge_shape(folders["4b"])
    assert 4.3e9 < shape.parameters < 4.6e9  # the hub's checkpoint has 4.4 billion
    facts = memory_facts(config, folders["4b"])
    assert "of 40 GiB" in facts["memory of a learner GPU"] and "TIGHT" not in facts["memory of a learner GPU"]
    whole = load_config(GdsoConfig, CONFIGS / "qwen3_vl_4b.yaml", ["learner.lora_rank=0"])
    with pytest.raises(PlacementError, match=r"a learner worker needs at least \d\d\.\d GiB .* its GPU has 40"):
        memory_facts(whole, folders["4b"])
    assert settled(config.rollout, folders["4b"]).gpu_memory_frac == pytest.approx(0.45)


def test_a_27b_teacher_on_eight_gpus(folders):
    config = load_config(GdsoConfig, CONFIGS / "qwen3_5_27b_teacher.yaml", [])
    shape = judge_shape(folders["27b"])
    assert 26e9 < shape.parameters < 29e9 and shape.cache_layers == 16
    learner = learner_memory(shape, config.learner, keeps_reference=True)
    assert learner.parts["weights"] == pytest.approx(2 * shape.parameters / 2**30 / 4)
    assert learner.total < 0.92 * 80
    engine = rollout_memory(shape, config.rollout, 80)
    assert engine.parts["weights"] == pytest.approx(2 * shape.parameters / 2**30 / 2) and engine.least < 80
    assert settled(config.rollout, folders["27b"]).chunked_prefill and EngineShape.of(folders["27b"]).recurrent
    with pytest.raises(ConfigError, match="5 does not divide the judge's 24 attention heads"):
        settled(config.rollout.model_copy(update={"gpus": 5.0}), folders["27b"])
    one_gpu = config.rollout.model_copy(update={"gpus": 1.0})
    assert rollout_memory(shape, one_gpu, 40).least > 40
