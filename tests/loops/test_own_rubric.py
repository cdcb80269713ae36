"""Five dimensions on seven bins from training to the wire: the built-in weights, asked about other things on another
scale."""

import json

import numpy as np
import pytest
import torch

from zr_ray.config.gdso import GdsoSection
from zr_ray.config.sft import SftSection
from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.data.load import load_split, require_judge
from zr_ray.data.pairs import PairSchedule, preference_pairs
from zr_ray.errors import JudgeError, RewardError
from zr_ray.judging.agreement import full_row
from zr_ray.judging.direct import judge_directly
from zr_ray.loops.distillation import shared_rubric
from zr_ray.loops.objective import GdsoObjective, collect, rollout_metrics
from zr_ray.loops.sft import SftObjective, answer_row, score_targets
from zr_ray.models.identity import template_hash
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.models.questions import QuestionPacker
from zr_ray.records import Judgement, JudgeRequest, Limits
from zr_ray.rubric import ScoringFormat
from zr_ray.serving import wire
from zr_ray.serving.application import item_weights, reply_of
from zr_ray.workers.learner import Learner
from zr_ray.workers.limits import check_request
from zr_ray.workers.reward import RewardWorker
from zr_ray.workers.reward_items import RewardItem

D, K = 5, 7


def direct_packer(learner, folder):
    return QuestionPacker(learner.engine.module.model, learner.text, PixelPreprocessor.load(folder))


@pytest.fixture(scope="module")
def trained(own_judge, own_data, tmp_path_factory):
    """(judge folder after two SFT steps, losses of the steps, held-out items, their row after training)."""
    learner = Learner(own_judge, LearnerSection(threads=1, lr=1e-3, warmup_steps=0))
    require_judge(own_data, learner.text.rubric)
    pairs = preference_pairs(load_split(own_data, "train"), learner.text.rubric.dimensions)
    batch = PairSchedule(pairs, 10, 0).batch(0)
    assert sorted({pair.dimension for pair in batch}) == sorted(learner.text.rubric.dimensions)
    sides = [(s, p.dimension, v) for p in batch for s, v in ((p.winner, p.winner_score), (p.loser, p.loser_score))]
    units = [[answer_row(learner.text, item, d, v, False)] for item, d, v in sides]
    targets = score_targets(torch.tensor([v for *_, v in sides]), SftSection(), torch.tensor(learner.text.rubric.bins))
    losses = []
    for _ in range(2):
        losses.append(learner.accumulate(units, SftObjective(targets, len(units), 1.0)).sums["loss/score"])
        learner.apply(1e-3)
    folder = tmp_path_factory.mktemp("trained") / "judge"
    learner.save_judge(folder)
    learner.packer = direct_packer(learner, own_judge)
    items = load_split(own_data, "test")
    return folder, losses, items, full_row("sft", judge_directly(learner, items, 4), items, 20, 0)


def test_training_and_evaluation(trained, own_rubric):
    folder, losses, items, row = trained
    assert losses[1] < losses[0] - 0.1, losses
    assert ScoringFormat.load(folder).rubric == own_rubric
    assert list(row["dimensions"]) == list(own_rubric.dimensions) == list(row["reliability"])
    assert row["pooled"]["items"] == D * len(items) and row["pooled"]["voted"] == D * len(items)
    predicted = [v for curve in row["reliability"].values() for v in curve["predicted"]]
    assert 0 <= min(predicted) < max(predicted) <= 3


def test_serving_in_process_and_on_the_wire(trained, own_rubric):
    """The wire's request reaches the worker with five dimensions, its reply comes back with seven bins."""
    folder, _, items, _ = trained
    worker = RewardWorker(folder)
    worker.warm_up()
    image = load_image(items[0].image).transpose(2, 0, 1)
    tensors = {"images": image[None], "weights": np.arange(1.0, 6.0)}
    body = wire.pack(tensors, request={"prompts": [items[0].prompt], "dimensions": None})
    request = wire.read_request(wire.SAFETENSORS, body, {}, True, Limits(), "id", own_rubric.dimensions)
    check_request(request, Limits(), own_rubric.dimensions)
    asked = [
        RewardItem(i, p, request.dimensions, w)
        for i, p, w in zip(request.images, request.prompts, item_weights(request), strict=True)
    ]
    made = reply_of(request, worker.identity, worker.answer(asked), worker.bins)
    reply = wire.read_reply(wire.reply_safetensors(made))
    assert reply.dimensions == own_rubric.dimensions and reply.bins == own_rubric.bins and reply.status == ("ok",)
    assert reply.q.shape == (1, D, K) and reply.gradients[0].shape == image.shape
    np.testing.assert_allclose(reply.mu, reply.q @ np.array(own_rubric.bins), atol=1e-5)
    np.testing.assert_allclose(reply.reward, reply.mu @ np.arange(1.0, 6.0), atol=1e-4)
    tree = json.loads(json.dumps(wire.reply_json(made)))
    assert tree["bins"] == list(own_rubric.bins) and list(tree["items"][0]["scores"]) == list(own_rubric.dimensions)


def test_the_wire_refuses_what_the_judge_lacks(own_rubric):
    body = wire.pack(
        {"images": np.zeros((1, 3, 8, 8), np.uint8)}, request={"prompts": ["a"], "dimensions": ["plausibility"]}
    )
    with pytest.raises(wire.WireError, match="text rendering.*got .'plausibility'"):
        wire.read_request(wire.SAFETENSORS, body, {}, False, Limits(), "id", own_rubric.dimensions)
    request = wire.read_request(wire.SAFETENSORS, body, {}, False, Limits(), "id")  # the paper's has it
    with pytest.raises(RewardError, match="text rendering.*got .'plausibility'"):
        check_request(request, Limits(), own_rubric.dimensions)


def test_gdso_on_another_scale(own_judge, own_data, own_rubric):
    """Rewards by hand on a range of 3 points, and a gradient through the seven labels on the real learner."""
    text = JudgeText(own_judge)
    (pair, *_) = [
        p for p in preference_pairs(load_split(own_data, "train"), own_rubric.dimensions) if p.winner_score >= 2
    ]
    tokens, at = text.answer(6)
    sure = np.where(np.arange(K) == 6, 0.0, -50.0).astype(np.float32)  # every output says 3.0
    half = np.full(K, -np.log(2), np.float32) + np.where(np.isin(np.arange(K), (0, 6)), 0.0, -50.0).astype(np.float32)
    requests = [
        JudgeRequest(side.id, text.question(side.prompt, pair.dimension, True), load_image(side.image), 0)
        for side in (pair.winner, pair.loser)
    ]
    groups = [[Judgement("", i, tokens, np.zeros(1, np.float32), at, q, 0) for i, q in enumerate((sure, half))]] * 2
    config = GdsoSection(group_size=2, pairs_per_step=1, beta_kl=0.0)
    rollouts = collect([pair], requests, groups, config, own_rubric, text.label_ids)
    torch.testing.assert_close(rollouts.expected_scores, torch.tensor([[[3.0, 1.5], [3.0, 1.5]]]))
    totals = rollout_metrics(rollouts, 0)
    wanted = sum(1 - abs(mu - s) / 3 for s in (pair.winner_score, pair.loser_score) for mu in (3.0, 1.5))
    assert totals["reward/pointwise"] == pytest.approx(wanted, abs=1e-5)
    learner = Learner(own_judge, LearnerSection(threads=1, lr=1e-3, warmup_steps=0))
    objective = GdsoObjective(rollouts, config, totals)
    before = learner.accumulate(rollouts.units, objective).sums
    learner.apply(1e-3)
    after = learner.accumulate(rollouts.units, GdsoObjective(rollouts, config, totals)).sums
    assert after["loss/pointwise"] < before["loss/pointwise"]


def test_judges_of_two_rubrics_do_not_teach_each_other(own_judge, judge_path, own_rubric):
    assert shared_rubric(own_judge, own_judge) == own_rubric
    with pytest.raises(JudgeError, match="alignment, text rendering.* on 7 bins 0, 0.5, ..., 3, .* on 9 bins"):
        shared_rubric(own_judge, judge_path)
    assert template_hash(JudgeText(own_judge)) != template_hash(JudgeText(judge_path))
