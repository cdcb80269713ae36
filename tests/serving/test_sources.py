"""Reward sources beside a judge in one real application: the same endpoint and client, by name, with gradients; and
together, as a training asks them. A job that starts such a service itself: `tests/jobs/test_t2i_job.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.clip import write_tiny_clip
from zr_ray.config.serve import ServeConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import JudgeError, RewardError
from zr_ray.models.clip_scorer import ClipScorer
from zr_ray.models.student import Student

PROMPTS = ("small red circle", "big blue star", "nothing")
LIGHT = "tests.workers.scorers:brightness"
APP = "test-sources"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), side=64, longest=24)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def deployed(config: ServeConfig, name: str, route: str | None) -> None:
    from ray import serve

    from zr_ray.serving.application import application
    from zr_ray.serving.launch import wait_until_running

    serve.run_many([serve.RunTarget(application(config), name, route)], wait_for_applications_running=False)
    wait_until_running(name, 300)


@pytest.fixture(scope="module")
def url(serve_url, service_config, folder):
    """The small service of this folder's tests with two more sources behind its gateway."""
    from ray import serve

    sources = [
        {"name": "pick", "clip": str(folder), "cpus": 0.1, "drain_s": 1.0},
        {"name": "light", "function": LIGHT, "scores": ["mean"], "cpus": 0.1, "drain_s": 1.0},
    ]
    tree = service_config().model_dump() | {"sources": sources}
    tree["http"] |= {"token_sha256": None}
    deployed(ServeConfig.model_validate(tree), APP, "/sources")
    yield f"{serve_url}/sources"
    serve.delete(APP)


def test_each_source_answers_by_name_over_both_transports(url, images, folder, judge_path):
    from zr_ray.serving.client import RewardClient

    clip = ClipScorer(folder)
    leaf = images.clone().requires_grad_()
    logit = clip(leaf, PROMPTS)[:, 0]
    (gradient,) = torch.autograd.grad(logit.sum(), leaf)
    for target in (APP, url):
        with RewardClient(target, judge="pick") as pick:
            assert pick.dimensions == ("logit", "cosine")
            served = images.clone().requires_grad_()
            pick.reward(served, PROMPTS, torch.tensor([1.0, 0.0])).sum().backward()
            torch.testing.assert_close(served.grad, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
            scores = pick.score(images, PROMPTS)
            torch.testing.assert_close(scores.mu[:, 0], logit.detach(), atol=1e-4, rtol=1e-5)
            assert scores.bins == () and scores.q.shape == (3, 2, 0) and not scores.sigma.any()
        with RewardClient(target, judge="light") as light:
            scores = light.score(images, PROMPTS)
            assert scores.status == ("ok", "ok", "failed") and "light answered nan" in scores.reason[2]
            bright = np.rint(images.numpy() * 255).mean((1, 2, 3))[:2] / 255
            np.testing.assert_allclose(scores.mu[:2, 0], bright, atol=1e-6)
            with pytest.raises(RewardError, match="no_gradient"):
                light.reward(images[:1].requires_grad_(), PROMPTS[:1])
            images.requires_grad_(False)
    with RewardClient(url) as judge, torch.no_grad():  # who names none asks the judge
        wanted = Student(judge_path)(images, list(PROMPTS)).mu
        torch.testing.assert_close(judge.score(images, PROMPTS).mu, wanted, atol=1e-5, rtol=0)


def test_the_gateway_says_which_sources_there_are(url):
    import json
    import urllib.error
    import urllib.request

    said = json.load(urllib.request.urlopen(f"{url}/v1/judge?judge=light"))
    assert said["judges"] == ["student", "pick", "light"] and said["dimensions"] == ["mean"]
    assert said["gives_gradient"] is False and said["bins"] == [] and len(said["model_hash"]) == 64
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/v1/judge?judge=nobody")


def test_a_training_asks_all_sources_of_a_service_that_is_there(url, images, folder, judge_path):
    """`reward.target` with names of deployments, through handles, as diffusion actors ask."""
    from zr_ray.serving.reward_source import open_source

    config = T2iConfig.model_validate(
        {
            "reward": {
                "target": APP,
                "sources": [
                    {"name": "student", "weights": {"realism": 1.0}},
                    {"name": "pick", "weights": {"cosine": 2.0}},
                    {"name": "light", "weights": {"mean": 3.0}},
                ],
            }
        }
    )
    rewards = open_source(config.reward, APP)
    made = rewards.submit(images, PROMPTS).result()
    rewards.close()
    told = config.reward.model_copy(update={"balance": True, "sources": config.reward.sources[:2]})
    rewards = open_source(told, APP)
    balanced = rewards.submit(images, PROMPTS, gradient=True).result()
    rewards.close()
    assert made.names == ("student.realism", "pick.cosine", "light.mean")
    assert made.failed_by == {"student": 0, "pick": 0, "light": 1} and made.reasons[2].startswith("light: failed")
    rounded = (images * 255).round() / 255
    with torch.no_grad():
        realism = Student(judge_path)(rounded, list(PROMPTS), ("realism",)).mu[:, 0]
        cosine = ClipScorer(folder)(rounded, PROMPTS)[:, 1]
    torch.testing.assert_close(made.mu[:2, 0].float(), realism[:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(made.mu[:2, 1].float(), cosine[:2], atol=1e-5, rtol=0)
    assert made.mu[:2, 2].tolist() == pytest.approx(rounded.mean((1, 2, 3))[:2].tolist(), abs=1e-6)
    # with reward.balance every score's own gradient comes, and their weighted sum
    leaf = images.clone().requires_grad_()
    scores = Student(judge_path)(leaf, list(PROMPTS), ("realism",)).mu[:, 0], ClipScorer(folder)(leaf, PROMPTS)[:, 1]
    for d, score in enumerate(scores):
        (slope,) = torch.autograd.grad(score.sum(), leaf)
        torch.testing.assert_close(balanced.each[:, d], slope, atol=1e-5 * float(slope.abs().max()), rtol=0)
    total = balanced.each[:, 0] + 2 * balanced.each[:, 1]
    torch.testing.assert_close(balanced.gradients, total)
    wanted = (scores[0] + 2 * scores[1]).detach()
    torch.testing.assert_close(balanced.reward.float(), wanted, atol=1e-4, rtol=1e-5)
    assert torch.equal(made.parsed[:2, 1:], made.mu[:2, 1:]) and set(made.parsed[:2, 0].tolist()) <= {
        1 + k / 2 for k in range(9)
    }


@pytest.mark.slow
def test_a_scorer_that_cannot_start_is_named(serve_url, tmp_path, folder):
    """Weights that give nan never become a replica that is asked."""
    import shutil

    from ray import serve
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["visual_projection.weight"].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    source = {"name": "pick", "clip": str(broken), "cpus": 0.1}
    config = ServeConfig.model_validate({"judge": {"path": None}, "http": {"enabled": False}, "sources": [source]})
    try:
        with pytest.raises(JudgeError, match="must answer its warm-up question"):
            deployed(config, "test-broken", None)
    finally:
        serve.delete("test-broken")
