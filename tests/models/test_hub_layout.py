"""What leaves a learner lies as the hub's checkpoint does."""

import json

import pytest
import torch
from real_judges import real_judge
from safetensors.torch import load_file

from zr_ray.errors import JudgeError
from zr_ray.models.hub_layout import head_overrides, refuse_layout, save_sharded, to_hub
from zr_ray.models.judge import load_packed_judge


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_5_moe", "qwen2_5_vl"])
def test_parameters_go_back_to_the_checkpoint_one_by_one(kind, tmp_path):
    folder = real_judge(tmp_path / kind, kind, width=64)
    module, _, _ = load_packed_judge(folder, torch.float32)
    made, stored = dict(to_hub(module.model, module.model.named_parameters())), load_file(folder / "model.safetensors")
    assert made.keys() == stored.keys()
    for name, value in stored.items():
        torch.testing.assert_close(made[name].detach(), value, atol=0, rtol=0, msg=name)
    assert list(made) != [name for name, _ in module.model.named_parameters()] or kind == "qwen3_vl_moe"


def test_a_folder_that_transformers_saved_is_refused_with_the_reason(tmp_path):
    folder = real_judge(tmp_path / "hub", "qwen3_vl_moe", width=64)
    refuse_layout(folder)
    module, _, _ = load_packed_judge(folder, torch.float32)
    turned = tmp_path / "turned"
    turned.mkdir()
    (turned / "config.json").write_text((folder / "config.json").read_text())
    save_sharded(((n, p.detach()) for n, p in module.model.named_parameters()), turned)
    with pytest.raises(
        JudgeError, match=r"experts as the hub does, \[experts, 64, 2 x intermediate\], got \[4, 96, 64\]"
    ):
        refuse_layout(turned)


@pytest.mark.parametrize(
    ("whole", "text", "changed"),
    [(True, {}, True), (True, {"tie_word_embeddings": False}, True), (True, {"tie_word_embeddings": True}, False),
     (False, {}, False), (False, {"tie_word_embeddings": True}, False)],
)  # fmt: skip
def test_an_engine_is_told_of_a_tied_head_where_only_the_whole_model_says_so(tmp_path, whole, text, changed):
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": whole, "text_config": text}))
    assert head_overrides(tmp_path) == ({"text_config": {"tie_word_embeddings": True}} if changed else {})


def test_a_flat_configuration_needs_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    assert head_overrides(tmp_path) == {}


def test_shards_hold_every_tensor_once_and_no_more_than_one_is_in_memory(tmp_path):
    tensors = {f"layer.{n}": torch.full((100,), float(n)) for n in range(7)}
    alive = []

    def stream():
        for name, value in tensors.items():
            alive.append(name)
            yield name, value

    save_sharded(stream(), tmp_path, limit=900)  # two tensors of 400 bytes a shard
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2800 and index["weight_map"].keys() == tensors.keys()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)]
    back = {name: value for path in files for name, value in load_file(path).items()}
    assert all(torch.equal(back[name], value) for name, value in tensors.items())
