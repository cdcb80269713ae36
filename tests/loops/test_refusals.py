"""Wrong settings of a GDSO run on a real architecture: refused in one line by the check before Ray is joined."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from real_judges import real_judge

from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config
from zr_ray.errors import ZrRayError
from zr_ray.loops.training import _check


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return real_judge(tmp_path_factory.mktemp("judge") / "qwen3_vl", "qwen3_vl", width=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, lines = tmp_path_factory.mktemp("data"), []
    for n, (split, side) in enumerate([("train", 512), ("train", 1024), ("test", 512), ("test", 512)]):
        pixels = np.random.default_rng(n).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(folder / f"{n}.jpg")
        line = {"id": f"i{n}", "group": f"g{n // 2}", "split": split, "prompt": f"a cat {n // 2}"}
        scores = {d: float(1 + n) for d in ("alignment", "realism", "aesthetics", "plausibility")}
        lines.append(line | {"image": f"{n}.jpg", "scores": scores})
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def plan(judge, data, *overrides):
    """Facts of the plan. Everything wrong is refused on the way."""
    config = load_config(GdsoConfig, None, [f"judge.path={judge}", f"data.path={data}", *overrides])
    return _check(config).facts


def test_a_right_one_prints_its_limits(judge, data):
    facts = plan(judge, data, "rollout.max_new_tokens=1000")
    # 1024 tokens of the image, about 150 of the question, 1000 of the output: not the model's 262,144
    assert (
        facts["rollout limits"].startswith("max_model_len 2") and "largest image 1024 x 1024" in facts["rollout limits"]
    )
    on_gpu = plan(judge, data, "rollout.gpus=.5", "learner.gpus=.5", "run.gpu_gib=80")
    assert "CUDA graphs on" in on_gpu["rollout limits"] and "0.45 of a GPU's memory" in on_gpu["rollout limits"]
    assert "of 40 GiB" in on_gpu["memory of a learner GPU"] and "of 40 GiB" in on_gpu["memory of a rollout GPU"]


WRONG = {
    "a length below the largest image": (["rollout.max_model_len=900"], "line 2: item 'i1': an image of 1024 x 1024"),
    "parts that do not divide heads": (["rollout.gpus=3"], "3 does not divide the judge's 4 attention heads"),
    "a batch smaller than ranks": (
        ["learner.zero_stage=3", "learner.workers=4", "gdso.pairs_per_step=2"], "a multiple of learner.workers (4)",
    ),
    "half precision": (["rollout.dtype=float16"], "rollout.dtype must be 'float32' or 'bfloat16', got 'float16'"),
    "LoRA on what is frozen": (
        ["learner.lora_rank=8", "learner.freeze=[model.language_model]"], "freezes all of it: nothing is left to train",
    ),
    "LoRA on no layer": (["learner.lora_rank=8", "learner.lora_targets=[query]"], "'query' is no linear layer"),
    "a learner on two GPUs": (["learner.gpus=2"], "learner.gpus must be at most 1"),
    "two ranks on a part of a GPU": (["learner.gpus=.5", "learner.workers=2"], "NCCL refuses two ranks on one GPU"),
    "a cache for less than a sequence": (["rollout.kv_cache_gib=.0001"], "rollout.kv_cache_gib must hold one sequence"),
    "no room for an output": (["rollout.max_model_len=64", "rollout.max_new_tokens=64"], "must hold a question beside"),
    "a GPU that is too small": (["learner.gpus=1", "run.gpu_gib=.001"], "a learner worker needs at least"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting(judge, data, overrides, words):
    with pytest.raises(ZrRayError) as refused:
        plan(judge, data, *overrides)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_an_image_beyond_the_decoder(judge, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    Image.new("1", (6000, 6000)).save(folder / "0.jpg", format="PNG")
    with pytest.raises(ZrRayError, match=r"line 1: .*0.jpg: wanted at most \d+ pixels, got 6000 x 6000"):
        plan(judge, folder)


def test_a_prompt_that_does_not_fit(judge, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    lines = (folder / "annotations.jsonl").read_text().replace("a cat 0", "red cat " * 3000)
    (folder / "annotations.jsonl").write_text(lines)
    with pytest.raises(ZrRayError, match=r"line 1: item 'i0': the question must have at most \d+ tokens .* got \d{4}"):
        plan(judge, folder, "rollout.max_model_len=4000")


def test_experts_as_transformers_saves_them(data, tmp_path):
    from transformers import AutoModelForImageTextToText

    folder = real_judge(tmp_path / "moe", "qwen3_vl_moe", width=64)
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(ZrRayError, match="must hold its experts as the hub does"):
        plan(folder, data)
