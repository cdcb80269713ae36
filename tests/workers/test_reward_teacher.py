"""A teacher behind the reward interface: its distribution is the mean over its traces, item by item; what it cannot
answer says why."""

import numpy as np
import pytest
import ray

from zr_ray.models.judge_text import JudgeText
from zr_ray.records import ItemFault, JudgeRequest
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.workers.reward_items import RewardItem
from zr_ray.workers.reward_teacher import TeacherWorker


class Engine:
    """The tests' one engine; remembers what it was asked and what it said."""

    def __init__(self, actor, judge_path, config):
        self.text, self.config, self.said, self._actor = JudgeText(judge_path), config, [], actor

    def generate(self, requests: list[JudgeRequest], group_size: int, temperature: float):
        groups = ray.get(self._actor.generate.remote(requests, group_size, temperature))
        self.said += zip(requests, groups, strict=True)
        return groups


@pytest.fixture(scope="module")
def teacher(fleet, judge_path, rollout_config):
    worker = TeacherWorker(judge_path, Engine(fleet.workers[0], judge_path, rollout_config), traces=3)
    worker.warm_up()
    return worker


def test_the_distribution_is_the_mean_over_traces(teacher, noise_image):
    engine = teacher._engine
    engine.said.clear()
    item = RewardItem(noise_image.transpose(2, 0, 1), "a small red circle", ("realism", "alignment"))
    (answer,) = teacher.answer([item])
    assert len(engine.said) == 2
    for d, (request, group) in enumerate(engine.said):
        np.testing.assert_array_equal(request.image, noise_image)
        assert engine.text.tokenizer.decode(request.token_ids) == engine.text.tokenizer.decode(
            engine.text.question(item.prompt, item.dimensions[d])
        )
        rows = [np.exp(j.score_logprobs.astype(np.float64)) for j in group if j.score_index is not None]
        q = np.mean([row / row.sum() for row in rows], axis=0)
        np.testing.assert_allclose(answer.q[d], q, atol=1e-6)
        np.testing.assert_allclose(answer.mu[d], q @ np.array(SCORE_BINS), atol=1e-5)
        np.testing.assert_allclose(answer.outside[d], np.mean([1 - row.sum() for row in rows]), atol=1e-5)


def test_neighbors_and_repeats_change_nothing(teacher, noise_image):
    pixels = noise_image.transpose(2, 0, 1)
    item = RewardItem(pixels.astype(np.float32) / 255, "a blue square", ("realism",))
    others = [
        RewardItem(pixels, "a blue square", DIMENSIONS, weights=(1.0,) * 4),
        RewardItem(pixels, "word " * 300, ("realism",)),
        RewardItem(pixels, " ", ("realism",)),
    ]
    (alone,) = teacher.answer([item])
    *faults, together = teacher.answer([*others, item])
    assert [f.status for f in faults] == ["no_gradient", "prompt_too_long", "empty_prompt"] and all(
        isinstance(f, ItemFault) for f in faults
    )
    np.testing.assert_allclose(together.q, alone.q, atol=1e-5)
