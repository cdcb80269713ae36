"""A learner with LoRA and checkpointed activations: its merged weights are what it computes with, its reference is the
policy of the last refresh, and a checkpoint continues both."""

import numpy as np
import pytest
import torch

from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.workers.learner import Learner


@pytest.fixture(scope="module")
def units(judge_path, world_items):
    text, rng = JudgeText(judge_path), np.random.default_rng(1)
    taken = {*text.forbidden_ids, *text.label_ids, text.end_id}
    words = [t for t in range(text.vocab_size) if t not in taken]

    def row(item, length):
        body = rng.choice(words, size=length)
        completion = np.array([*body, *text.marker_ids, text.label_ids[length % 9], text.end_id], np.int32)
        return Row(text.question(item.prompt, "realism"), load_image(item.image), (completion,), (length + 1,))

    return [[row(world_items[2 * i], 3 + i), row(world_items[2 * i + 1], 9 - i)] for i in range(2)]


def section(**changes):
    return LearnerSection(threads=1, lr=1e-3, warmup_steps=0, **changes)


def objective(seen=None):
    def loss(outputs, indices, reference):
        if seen is not None:
            seen.append(None if reference is None else reference.detach().clone())
        return -(outputs.logprobs * outputs.mask).sum() / 100, {"tokens": float(outputs.mask.sum())}

    return loss


def test_lora_merged_weights_and_reference(judge_path, units, tmp_path):
    rows = [row for unit in units for row in unit]
    plain, _, packer = load_packed_judge(judge_path, torch.float32)
    with torch.no_grad():
        before = plain(packer.pack(rows)).logprobs
    small, seen = section(lora_rank=4, lora_alpha=8.0, gradient_checkpointing=True), []
    learner = Learner(judge_path, small, keep_reference=True)
    assert learner.reference is None
    trained = [n for n, p in learner.engine.module.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in n and ".policy." in n and "visual" not in n for n in trained)
    torch.testing.assert_close(learner.forward(rows).logprobs, before, atol=1e-6, rtol=0)
    for _ in range(3):
        learner.accumulate(units, objective(seen))
        learner.apply(1e-2)
    after = learner.forward(rows).logprobs
    assert (after - before).abs().max() > 0.05
    for reference in seen:  # adapters of the reference have not moved; rows are in another order in a micro-batch
        torch.testing.assert_close(reference.sum(), before.sum(), atol=1e-3, rtol=0)
    weights = {name: value.clone() for name, value in learner.named_weights()}
    assert weights.keys() == {name for name, _ in plain.model.named_parameters()}
    plain.model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        merged = plain(packer.pack(rows)).logprobs
    torch.testing.assert_close(merged, after, atol=1e-5, rtol=1e-5)
    learner.save_judge(tmp_path / "judge")
    saved, _, packer = load_packed_judge(tmp_path / "judge", torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(saved(packer.pack(rows)).logprobs, after, atol=1e-5, rtol=1e-5)

    learner.refresh_reference()
    learner.accumulate(units, objective(seen))
    torch.testing.assert_close(seen[-1].sum(), after.sum(), atol=1e-3, rtol=0)
    learner.save(tmp_path / "checkpoint", {"step": 3})
    other = Learner(judge_path, small, keep_reference=True)
    other.load(tmp_path / "checkpoint")
    torch.testing.assert_close(other.forward(rows).logprobs, after, atol=1e-6, rtol=0)
    other.accumulate(units, objective(seen))
    torch.testing.assert_close(seen[-1], seen[-2], atol=1e-6, rtol=0)
