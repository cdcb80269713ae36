"""Several reward sources beside each other: names, sums of gradients, what one that fails does to the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.clip import write_tiny_clip
from tests.workers.scorers import brightness
from zr_ray.config.serve import ServedSourceSection
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import DeadlineError, RewardError
from zr_ray.functional.group_advantages import advantages
from zr_ray.loops.t2i_rollout import group_rewards, reward_metrics
from zr_ray.models.clip_scorer import ClipScorer
from zr_ray.models.student import Student
from zr_ray.workers.joint_reward import SILENT_CALLS, JointReward
from zr_ray.workers.local_judge import LocalJudge
from zr_ray.workers.reward_items import RewardItem
from zr_ray.workers.reward_source import RewardSource, Scored, join_scored
from zr_ray.workers.scorer import ScorerWorker, scorer_of

LIGHT = "tests.workers.scorers:brightness"


class ScorerReward(RewardSource):
    """A scorer in this process: what the service does, without the service."""

    def __init__(self, config, source) -> None:
        super().__init__(config)
        served = source.model_dump(include={"name", "clip", "function"})
        scores = tuple(source.weights) if source.function else ()
        self.worker = ScorerWorker(scorer_of(ServedSourceSection(**served, scores=scores)), source.name)
        self.out_of_reach = False

    def answer(self, images, prompts, gradient):
        if self.out_of_reach:
            raise DeadlineError("not answered in 120 s")
        weights = tuple(self.weights.tolist()) if gradient else None
        items = [RewardItem(i.numpy(), p, self.names, weights) for i, p in zip(images, prompts, strict=True)]
        found = self.worker.answer(items)
        good = [not hasattr(a, "status") for a in found]
        mu = torch.tensor(
            [a.mu.tolist() if ok else [np.nan] * len(self.names) for a, ok in zip(found, good, strict=True)]
        ).double()
        zero, extra = torch.zeros_like(mu), {}
        if gradient:
            slopes = [torch.from_numpy(a.gradient) * a.scale if ok else torch.zeros(i.shape) for a, ok, i in
                      zip(found, good, images, strict=True)]  # fmt: skip
            reward = torch.tensor([a.reward if ok else np.nan for a, ok in zip(found, good, strict=True)]).double()
            extra = {"reward": reward, "gradients": torch.stack(slopes)}
        reasons = tuple("" if ok else a.reason for a, ok in zip(found, good, strict=True))
        return Scored(self.names, mu, zero, mu, zero, (source_hash(self),) * len(mu), reasons, **extra)


def source_hash(source: ScorerReward) -> str:
    return source.worker.identity.model_hash[:8]


def joint(judge_path, folder, **reward):
    tree = {
        "sources": [
            {"name": "student", "judge": str(judge_path), "weights": {"realism": 1.0, "alignment": -0.5}},
            {"name": "pick", "clip": str(folder), "weights": {"logit": 0.25}},
        ]
    } | reward
    config = T2iConfig.model_validate({"reward": tree}).reward
    alone = {s.name: config.model_copy(update={"sources": (), "weights": s.weights}) for s in config.sources}
    made = {
        s.name: LocalJudge(alone[s.name], judge_path) if s.judge else ScorerReward(alone[s.name], s)
        for s in config.sources
    }
    return JointReward(config, made), made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), side=64)


@pytest.fixture()
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(4))


PROMPTS = ("small red circle",) * 2 + ("big blue star",) * 2
LIT = [{"name": "light", "function": LIGHT, "weights": {"mean": 2.0}}]


def test_names_scores_and_the_gradient_of_the_sum(judge_path, folder, images):
    """A judge and a CLIP scorer: their columns side by side, one gradient, by plain autograd through both."""
    rewards, _ = joint(judge_path, folder)
    made = rewards.submit(images, PROMPTS, gradient=True).result()
    assert made.names == rewards.names == ("student.realism", "student.alignment", "pick.logit")
    student, clip, leaf = Student(judge_path), ClipScorer(folder), images.clone().requires_grad_()
    mu, logit = student(leaf, list(PROMPTS), ("realism", "alignment")).mu, clip(leaf, PROMPTS)[:, 0]
    wanted = mu[:, 0] - 0.5 * mu[:, 1] + 0.25 * logit
    (gradient,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(made.mu.float(), torch.cat([mu, logit[:, None]], 1).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.reward.float(), wanted.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(made.gradients, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
    assert made.versions[0].startswith("student=local pick=") and made.failed == 0
    rewards.close()


def test_an_image_that_one_source_fails_leaves_the_statistics_and_the_source_is_named(images):
    rewards, _ = joint(None, None, sources=[*LIT, LIT[0] | {"name": "other"}])
    prompts = ("red", "nothing", "red", "red")
    parts = [rewards.submit(images[i : i + 2], prompts[i : i + 2]).result() for i in (0, 2)]
    made = join_scored(parts)
    assert [bool(r) for r in made.reasons] == [False, True, False, False]
    assert made.reasons[1].startswith("light: light answered nan") and "other: other answered nan" in made.reasons[1]
    assert made.failed_by == {"light": 1, "other": 1} and rewards.counters["failed by light"] == 1
    grouped = group_rewards(made, rewards.weights, rewards.config, 2)
    values, valid = advantages(grouped, "std")
    assert valid.tolist() == [[False, False], [True, True]] and not values[0].any(), "one of two is no group"
    bright = brightness((images * 255).round().movedim(1, -1).numpy(), PROMPTS)["mean"]
    assert grouped[1].tolist() == pytest.approx([4 * float(b) for b in bright[2:]], rel=1e-4)
    sums = reward_metrics(made, rewards.weights, grouped, valid.flatten())
    assert sums["reward/failed"] == 1 and sums["reward/failed/light"] == 1 and sums["reward/scored"] == 3
    assert sums["reward/light.mean"] == pytest.approx(float(bright[[0, 2, 3]].sum()), rel=1e-4)
    (line,) = rewards.new_faults()
    assert "light answered nan" in line and rewards.new_faults() == []
    rewards.close()


def test_a_source_that_does_not_answer_costs_its_items_and_in_the_end_the_run(judge_path, folder, images):
    rewards, sources = joint(judge_path, folder)
    sources["pick"].out_of_reach = True
    made = rewards.submit(images, PROMPTS, gradient=True).result()
    assert made.failed_by == {"student": 0, "pick": 4} and not made.gradients.any() and made.reward.isnan().all()
    assert made.mu[:, 2].isnan().all() and made.mu[:, :2].isfinite().all()
    assert "pick: DeadlineError: not answered in 120 s" in made.reasons[0]
    sources["pick"].out_of_reach = False
    assert rewards.submit(images, PROMPTS).result().failed == 0  # counts again from here
    sources["pick"].out_of_reach = True
    for _ in range(SILENT_CALLS - 1):
        rewards.submit(images[:1], PROMPTS[:1]).result()
    with pytest.raises(RewardError, match=f"source pick must score images, it scored none in {SILENT_CALLS} calls"):
        rewards.submit(images[:1], PROMPTS[:1]).result()
    rewards.close()


@pytest.mark.parametrize("aggregation", ["sum", "worst", "gdpo", "parsed"])
def test_every_aggregation_takes_all_sources(judge_path, folder, images, aggregation):
    rewards, _ = joint(judge_path, folder, aggregation=aggregation)
    made = rewards.submit(images, PROMPTS).result()
    grouped = group_rewards(made, rewards.weights, rewards.config, 2)
    weighted = rewards.weights * (made.parsed if aggregation == "parsed" else made.mu)
    if aggregation == "gdpo":
        assert grouped.shape == (2, 2, 3) and torch.equal(grouped.flatten(0, 1), weighted)
    else:
        wanted = weighted.min(-1).values if aggregation == "worst" else weighted.sum(-1)
        torch.testing.assert_close(grouped.flatten(), wanted)
    assert torch.equal(made.parsed[:, 2], made.mu[:, 2]), "a plain number is what it parses to"
    rewards.close()
