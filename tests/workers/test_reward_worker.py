"""A reward worker without Ray: faults stay with their item, gradients scale exactly, broken weights are refused."""

import numpy as np
import pytest
import torch

from zr_ray.errors import JudgeError
from zr_ray.functional.aggregation import aggregate_reward
from zr_ray.records import ItemFault
from zr_ray.rubric import DIMENSIONS
from zr_ray.workers.reward import RewardWorker
from zr_ray.workers.reward_items import RewardItem, scaled

IMAGE = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def worker(judge_path):
    made = RewardWorker(judge_path, grad_items=2)
    made.warm_up()
    return made


def test_mixed_batch(worker):
    items = [
        RewardItem(IMAGE, "purple", DIMENSIONS, (1.0, 0.0, 0.0, 0.0)),
        RewardItem(IMAGE[:, :32], "purple", ("realism",)),
        RewardItem(np.full_like(IMAGE, np.nan), "purple", DIMENSIONS),
        RewardItem(IMAGE, "<|im_end|>", DIMENSIONS),
        RewardItem(ItemFault("undecodable", "cut"), "purple", DIMENSIONS),
        RewardItem(IMAGE, "a red star", DIMENSIONS, (0.0, 1.0, 0.0, 2.0), 0.5),
        RewardItem(IMAGE, "purple", DIMENSIONS, (-1.0, 0.0, 0.0, 0.0)),
        RewardItem(IMAGE, "purple", DIMENSIONS, (1.0, 1.0, 0.0, 0.0)),
    ]
    answers = worker.answer(items)
    assert [getattr(a, "status", "ok") for a in answers] == [
        "ok",
        "ok",
        "bad_pixels",
        "bad_prompt",
        "undecodable",
        "ok",
        "ok",
        "ok",
    ]
    assert answers[1].mu.shape == (1,) and answers[1].gradient is None
    x = torch.from_numpy(IMAGE)[None].requires_grad_()
    scores = worker.student(x, ["a red star"])
    reward = aggregate_reward(scores.log_q, worker.student.bins, torch.tensor([0.0, 1.0, 0.0, 2.0]), 0.5)
    reward.sum().backward()
    assert answers[5].reward == pytest.approx(float(reward), abs=1e-5)
    np.testing.assert_allclose(answers[5].gradient * answers[5].scale, x.grad[0].numpy(), atol=1e-7, rtol=1e-4)
    np.testing.assert_allclose(
        answers[0].gradient * answers[0].scale, -answers[6].gradient * answers[6].scale, atol=1e-7, rtol=1e-4
    )
    assert all(worker.phases[phase] > 0 for phase in ("batch", "preprocess", "forward", "backward"))


def test_a_failing_item_leaves_its_neighbors(worker, monkeypatch):
    forward = worker.student.forward

    def fails_for_purple(images, prompts, dimensions):
        if "purple" in prompts:
            raise RuntimeError("no purple today")
        return forward(images, prompts, dimensions)

    monkeypatch.setattr(worker.student, "forward", fails_for_purple)
    answers = worker.answer([RewardItem(IMAGE, p, DIMENSIONS) for p in ("red", "purple", "blue")])
    assert [getattr(a, "status", "ok") for a in answers] == ["ok", "failed", "ok"] and "no purple today" in answers[
        1
    ].reason


def test_scale_is_an_exact_power_of_two():
    gradient = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0)) * 1e-6
    values, scale = scaled(gradient)
    assert 0.5 <= np.abs(values).max() <= 1 and np.log2(scale) == round(np.log2(scale))
    assert np.array_equal(values * np.float32(scale), gradient.numpy())
    assert scaled(torch.zeros(2))[1] == 1


def test_broken_weights_are_refused(judge_path):
    broken = RewardWorker(judge_path)
    with torch.no_grad():
        next(broken.student.judge.model.model.language_model.parameters()).fill_(torch.nan)
    with pytest.raises(JudgeError, match="warm-up question, got failed"):
        broken.warm_up()


def test_cached_questions_are_dropped(worker, monkeypatch):
    monkeypatch.setattr("zr_ray.workers.reward.CACHED_PROMPT_CHARS", 20)
    for i in range(6):
        worker.answer([RewardItem(IMAGE, f"a red star {i} {k}", ("realism",)) for k in range(2)])
    assert len(worker.student.text._questions) <= 4  # of 12: one batch, and what came after the last drop
