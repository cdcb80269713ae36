"""Real architectures at tiny width, as the hub's folders have them: an engine starts with defaults, samples what the
learner computes, takes a push, and what is saved loads again.

One architecture runs in `make test`; the others and the whole tokenizer in `make test-slow`.
"""

from __future__ import annotations

import multiprocessing
import traceback

import pytest
import torch
from real_judges import picture, real_judge

SIZES = ((768, 768), (1024, 576), (512, 640))
"""Height and width, pixels; several aspect ratios."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}
"""Mean difference of log-probs, engine against learner, nats. In bf16 measured 1e-3 to 2e-2 on these peaked weights."""


def _in_a_process(target, *arguments) -> dict:
    """Result of `target` in a process of its own: an engine in this one would keep its memory and its thread count."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_answer, args=(child, target, *arguments))
    process.start()
    assert parent.poll(400), "no answer within 400 s"
    result = parent.recv()
    process.join(30)
    process.kill()
    assert "error" not in result, result.get("error")
    return result


def _answer(pipe, target, *arguments) -> None:
    try:
        pipe.send(target(*arguments))
    except BaseException:
        pipe.send({"error": traceback.format_exc()})


def _parity(folder: str, dtype: str, saved: str) -> dict:
    """Differences before and after a push of changed weights, and between the saved folder and what was pushed."""
    from zr_ray.config.sections import LearnerSection, RolloutSection
    from zr_ray.data.run_data import Need
    from zr_ray.models.engine_limits import settled
    from zr_ray.models.judge import load_packed_judge
    from zr_ray.models.packing import Row
    from zr_ray.models.preprocess import PixelPreprocessor
    from zr_ray.records import JudgeRequest
    from zr_ray.workers.learner import Learner
    from zr_ray.workers.rollout import RolloutWorker
    from zr_ray.workers.weights import logprob_difference, make_buckets

    learner = Learner(folder, LearnerSection(dtype=dtype, threads=1, zero_stage=1))
    text, pixels = learner.text, PixelPreprocessor.load(folder)
    questions = [text.question("two red cats left of a blue car", d) for d in ("alignment", "realism", "aesthetics")]
    images = [picture(size, n) for n, size in enumerate(SIZES)]
    need = Need(max(len(q) for q in questions) + max(pixels.image_tokens(*size) for size in SIZES), SIZES[0])
    rollout = settled(RolloutSection(threads=1, dtype=dtype, max_num_seqs=8, max_new_tokens=8), folder, need)
    engine = RolloutWorker(folder, rollout)
    requests = [JudgeRequest(str(n), q, i, n) for n, (q, i) in enumerate(zip(questions, images, strict=True))]

    def difference(judge=None) -> float:
        groups = engine.generate(requests, 2, 1.0)
        rows = [
            Row(r.token_ids, r.image, tuple(j.token_ids for j in g), tuple(j.score_index for j in g))
            for r, g in zip(requests, groups, strict=True)
        ]
        with torch.no_grad():
            outputs = learner.forward(rows) if judge is None else judge(learner.packer.pack(rows))
        return logprob_difference([j for g in groups for j in g], outputs.logprobs, outputs.score_logprobs)

    found = {"limit": rollout.max_model_len, "before": difference()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.engine.module.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    found["stale"] = difference()
    engine.update_weights(1, list(make_buckets(learner.named_weights(), 2**20)))
    found["after"] = difference()
    from pathlib import Path

    learner.save_judge(Path(saved))
    again, _, _ = load_packed_judge(Path(saved), torch.float32 if dtype == "float32" else torch.bfloat16)
    found["saved"] = difference(again.eval())
    return found


def _check(kind: str, dtype: str, tmp_path, pairs) -> None:
    from safetensors import safe_open

    thinking = "switch" if "3_5" in kind else "none"
    folder = real_judge(tmp_path / "judge", kind, thinking, pairs)
    found = _in_a_process(_parity, str(folder), dtype, str(tmp_path / "saved"))
    print(kind, dtype, found)
    limit = TOLERANCE[dtype]
    assert found["before"] < limit and found["after"] < limit and found["saved"] < limit, found
    assert found["stale"] > 3 * max(found["before"], found["after"]), found
    assert found["limit"] < 2048, "derived from the data, not the hub's 262,144"
    shapes = []
    for path in (folder, tmp_path / "saved"):
        with safe_open(path / "model.safetensors", "np") as file:
            shapes.append({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})
    assert shapes[0] == shapes[1], "names and layouts of the hub's checkpoint"


def test_qwen3_vl_starts_with_defaults_and_is_pushed_and_saved(tmp_path):
    _check("qwen3_vl", "float32", tmp_path, 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("qwen3_vl_moe", "float32"),
        ("qwen2_5_vl", "float32"),
        ("qwen3_5", "bfloat16"),
        ("qwen3_5_moe", "bfloat16"),
        ("qwen3_vl", "bfloat16"),
    ],
)
def test_other_architectures(kind, dtype, tmp_path):
    _check(kind, dtype, tmp_path, 4096)


@pytest.mark.slow
def test_the_whole_tokenizer(tmp_path):
    _check("qwen3_vl", "float32", tmp_path, None)
