"""Plain numbers behind the judge's interface: CLIP-family scorers and users' functions, item by item."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.clip import write_tiny_clip
from tests.workers import scorers
from zr_ray.config.serve import ServedSourceSection
from zr_ray.errors import ConfigError, JudgeError
from zr_ray.models.clip_scorer import ClipScorer
from zr_ray.records import ItemFault
from zr_ray.workers.reward_items import RewardAnswer, RewardItem
from zr_ray.workers.scorer import ScorerWorker, clip_folder, scorer_of
from zr_ray.workers.user_function import function_hash

HERE = "tests.workers.scorers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def worker(**source):
    return ScorerWorker(scorer_of(ServedSourceSection.model_validate({"name": "mine"} | source)), "mine")


def picture(seed=0, side=40):
    return np.random.default_rng(seed).random((3, side, side)).astype(np.float32)


class TestClip:
    def test_scores_and_gradients_of_a_mixed_batch(self, folder):
        """What the model gives alone, for two sizes, a choice of scores, and items without gradient between them."""
        made, alone = worker(clip=str(folder)), ClipScorer(folder)
        made.warm_up()
        items = [
            RewardItem(picture(0), "red", ("logit", "cosine"), (0.5, -2.0)),
            RewardItem(picture(1, 64), "blue", ("cosine",), (1.0,)),
            RewardItem(picture(2), "red", ("logit",)),
            RewardItem(picture(3), "green", ("logit", "cosine"), (1.0, 0.0)),
        ]
        for item, answer in zip(items, made.answer(items), strict=True):
            leaf = torch.from_numpy(item.image)[None].requires_grad_()
            wanted = alone(leaf, [item.prompt])[:, [alone.names.index(name) for name in item.dimensions]]
            np.testing.assert_allclose(answer.mu, wanted[0].detach(), rtol=1e-5)
            assert answer.q.shape == (len(item.dimensions), 0) and not answer.sigma.any()
            if item.weights is None:
                assert answer.gradient is None
                continue
            reward = (wanted * torch.tensor(item.weights)).sum()
            (gradient,) = torch.autograd.grad(reward, leaf)
            assert answer.reward == pytest.approx(float(reward.detach()), rel=1e-5)
            np.testing.assert_allclose(answer.gradient * answer.scale, gradient[0], atol=1e-5 * gradient.abs().max())
            assert 0.5 <= np.abs(answer.gradient).max() <= 1

    def test_a_prompt_that_does_not_fit_is_an_items_fault(self, folder):
        items = [RewardItem(picture(), text, ("logit",)) for text in ("red", "a b c d e f g h i j k l m n o")]
        first, second = worker(clip=str(folder)).answer(items)
        assert isinstance(first, RewardAnswer)
        assert second.status == "prompt_too_long" and "reads 16 tokens of a prompt, got 17" in second.reason
        assert all(isinstance(a, RewardAnswer) for a in worker(clip=str(folder), cut_prompts=True).answer(items))

    def test_broken_weights_do_not_start(self, folder):
        made = worker(clip=str(folder))
        with torch.no_grad():
            made.scorer.model.visual_projection.weight.fill_(torch.nan)
        with pytest.raises(JudgeError, match="must answer its warm-up question.*nan"):
            made.warm_up()

    def test_another_folder_is_refused(self, tmp_path, judge_path):
        for path in (tmp_path, judge_path):
            with pytest.raises(JudgeError, match="must be a folder of a transformers CLIPModel"):
                clip_folder(str(path))


class TestFunction:
    def test_it_gets_bytes_and_a_nan_is_an_items_fault(self):
        made = worker(function=f"{HERE}:brightness", scores=("mean",))
        images = [picture(0), picture(1, 16), picture(2)]
        items = [RewardItem(i, p, ("mean",)) for i, p in zip(images, ("red", "red", "nothing"), strict=True)]
        *good, bad = made.answer(items)
        for image, answer in zip(images, good, strict=False):
            assert answer.mu[0] == pytest.approx(np.rint(image * 255).mean() / 255, abs=1e-6)
        assert isinstance(bad, ItemFault) and "mine answered nan" in bad.reason

    def test_without_a_gradient_it_says_so_and_with_one_it_gives_it(self):
        asked = RewardItem(picture(), "red", ("mean",), (1.0,))
        (answer,) = worker(function=f"{HERE}:brightness", scores=("mean",)).answer([asked])
        assert answer.status == "no_gradient"
        made = worker(function=f"{HERE}:squared_red", scores=("red",), differentiable=True)
        items = [RewardItem(picture(i), "red", ("red",), (3.0,)) for i in range(3)]
        for item, answer in zip(items, made.answer(items), strict=True):
            wanted = np.zeros_like(item.image)
            wanted[0] = 3 * 2 * item.image[0] / item.image[0].size
            np.testing.assert_allclose(answer.gradient * answer.scale, wanted, rtol=1e-5, atol=1e-9)

    def test_one_item_that_raises_takes_no_neighbor_along(self):
        made = worker(function=f"{HERE}:squared_red", scores=("red",), differentiable=True)
        first, second, third = made.answer(
            [RewardItem(picture(i), p, ("red",)) for i, p in enumerate(("red", "broken", "red"))]
        )
        assert isinstance(first, RewardAnswer) and isinstance(third, RewardAnswer)
        assert second.status == "failed" and "ZeroDivisionError: a scorer of a test" in second.reason

    @pytest.mark.parametrize(
        ("function", "scores", "said"),
        [("brightness", ("sharpness",), "sharpness.*missing"), ("wrong_count", ("mean",), "must return 2 numbers")],
    )
    def test_what_it_must_return(self, function, scores, said):
        made = scorer_of(ServedSourceSection(name="mine", function=f"{HERE}:{function}", scores=scores))
        with pytest.raises(Exception, match=said):
            made(torch.rand(2, 3, 8, 8), ["red", "red"])

    def test_a_class_is_made_into_one_object(self):
        before = scorers.Counted.made
        made = worker(function=f"{HERE}:Counted", scores=("made",))
        answers = made.answer([RewardItem(picture(i), "red", ("made",)) for i in range(3)])
        assert [float(a.mu[0]) for a in answers] == [before + 1] * 3

    def test_its_hash_names_the_file(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "mine_for_a_test.py").write_text("def score(images, prompts): return {}\n")
        before = function_hash("mine_for_a_test:score")
        (tmp_path / "mine_for_a_test.py").write_text("def score(images, prompts): return {'x': [1]}\n")
        assert function_hash("mine_for_a_test:score") != before
        with pytest.raises(ConfigError, match="package.module:callable"):
            function_hash("mine_for_a_test:nothing")
