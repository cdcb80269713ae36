"""Engine against learner, before and after a push, in a process of its own; on CPU and on GPUs the same."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from pathlib import Path

import torch
from real_judges import picture

WAIT_S = 400
"""Seconds a process may take; most of them are imports on a crowded machine."""
SIZES = ((768, 768), (1024, 576), (512, 640))
"""Height and width of the images, pixels; several aspect ratios."""


def in_a_process(target, *arguments) -> dict:
    """Result of `target` in a process of its own: an engine in this one would keep its memory and its thread count."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_answer, args=(child, target, *arguments))
    process.start()
    try:
        assert parent.poll(WAIT_S), f"no answer within {WAIT_S} s"
        result = parent.recv()
        process.join(30)
    finally:
        process.kill()
    assert "error" not in result, result.get("error")
    return result


def _answer(pipe, target, *arguments) -> None:
    # a learner in the parent may have made itself a world of one there, on a port that is taken
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    try:
        pipe.send(target(*arguments))
    except BaseException:
        pipe.send({"error": traceback.format_exc()})


def parity(folder: str, dtype: str, saved: str, gpus: float = 0.0) -> dict:
    """Differences before and after a push of changed weights, and between the saved folder and what was pushed; in bf16
    also how far learner ("rounding") and engine ("engine_rounding") are from float32 with the same weights."""
    from zr_ray.config.workers import LearnerSection, RolloutSection
    from zr_ray.data.run_data import Need
    from zr_ray.models.engine_limits import settled
    from zr_ray.models.judge import load_packed_judge
    from zr_ray.models.packing import Row
    from zr_ray.models.preprocess import PixelPreprocessor
    from zr_ray.records import JudgeRequest
    from zr_ray.workers.learner import Learner
    from zr_ray.workers.rollout import RolloutWorker
    from zr_ray.workers.weights import Checksum, make_buckets, probe_difference

    learner = Learner(folder, LearnerSection(dtype=dtype, threads=1, zero_stage=1, gpus=gpus))
    text, pixels = learner.text, PixelPreprocessor.load(folder)
    questions = [text.question("two red cats left of a blue car", d) for d in ("alignment", "realism", "aesthetics")]
    images = [picture(size, n) for n, size in enumerate(SIZES)]
    need = Need(max(len(q) for q in questions) + max(pixels.image_tokens(*size) for size in SIZES), SIZES[0])
    rollout = settled(RolloutSection(threads=1, dtype=dtype, max_num_seqs=8, max_new_tokens=8, gpus=gpus), folder, need)
    engine = RolloutWorker(folder, rollout)
    requests = [JudgeRequest(str(n), q, i, n) for n, (q, i) in enumerate(zip(questions, images, strict=True))]

    def answers():
        groups = engine.generate(requests, 2, 1.0)
        rows = [
            Row(r.token_ids, r.image, tuple(j.token_ids for j in g), tuple(j.score_index for j in g))
            for r, g in zip(requests, groups, strict=True)
        ]
        return [j for g in groups for j in g], rows

    def difference(judge=None) -> float:
        judgements, rows = answers()
        with torch.no_grad():
            outputs = learner.forward(rows) if judge is None else judge(learner.packer.pack(rows))
        made = probe_difference(judgements, outputs.logprobs, outputs.score_logprobs)
        return made.largest if dtype == "float32" else made.mean

    found = {"limit": rollout.max_model_len, "before": difference()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.engine.module.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    found["stale"] = difference()
    sent = Checksum()
    engine.update_weights(1, make_buckets(sent.over(learner.named_weights()), 2**20))
    assert engine.weights_checksum() == sent.digest
    told, gave = (
        [(name, value.shape, value.dtype) for name, value in stream]
        for stream in (learner.described_weights(), learner.named_weights())
    )
    assert told == gave, "what a broadcast announces is what it sends"
    found["after"] = difference()
    # what an engine of several processes does with a push
    engine.weights.reload(learner.named_weights(), through_files=True)
    found["files"] = difference()
    learner.save_judge(Path(saved))
    again, _, _ = load_packed_judge(Path(saved), torch.float32 if dtype == "float32" else torch.bfloat16)
    found["saved"] = difference(again.eval())
    if dtype != "float32":
        exact, _, _ = load_packed_judge(Path(saved), torch.float32)
        judgements, rows = answers()
        with torch.no_grad():
            outputs, wanted = learner.forward(rows), exact.eval()(learner.packer.pack(rows))
        found["rounding"] = float((outputs.logprobs.float().cpu() - wanted.logprobs)[wanted.mask].abs().mean())
        found["engine_rounding"] = probe_difference(judgements, wanted.logprobs, wanted.score_logprobs).mean
    return found
