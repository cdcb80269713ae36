"""Versions of a run's reward: when a look is due, what counts as drift, what is taken, what survives a kill; and that
scores of two versions are never compared."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from zr_ray.config.refresh import RefreshSection
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import CheckpointError, ConfigError, JudgeError
from zr_ray.functional.group_advantages import advantages
from zr_ray.judging.held_out_images import Look
from zr_ray.judging.three_way import three_way
from zr_ray.loops.refresh_plan import distillation_config, plan_refresh
from zr_ray.loops.reward_versions import RewardVersions, Version, drift_reasons, not_taken
from zr_ray.loops.t2i_looks import Looks
from zr_ray.loops.t2i_rollout import group_rewards, of_one_version, reward_metrics
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.run.folder import RunFolder
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.reward_source import RewardSource, Scored, hash_number, join_scored
from zr_ray.workers.user_function import to_bytes

WEIGHTS = dict.fromkeys(DIMENSIONS, 1.0)
OLD, NEW = "a" * 64, "b" * 64


def section(**told) -> RefreshSection:
    return RefreshSection.model_validate({"every_steps": 4} | told)


# ---- on disk ----


def look(step, version=0, accuracy=0.7, refresh=None):
    return {"step": step, "version": version, "accuracy": accuracy, "refresh": refresh}


def test_a_look_is_due_where_something_is_left_to_reward_and_is_made_once(tmp_path):
    versions, c = RewardVersions(tmp_path), section(most=2)
    versions.begin(OLD)
    assert [step for step in range(13) if versions.due(step, 12, c)] == [4, 8]
    versions.record(look(4))
    assert [step for step in range(13) if versions.due(step, 12, c)] == [8]
    assert not RewardVersions(tmp_path).due(8, 12, RefreshSection()), "off by default"
    versions.record(look(8, refresh={"taken": None, "accuracy": None}))
    versions.record(look(12, refresh={"taken": None, "accuracy": None}))
    assert versions.distilled == 2 and not versions.due(16, 99, c), "no distillation may follow"


def test_a_killed_run_goes_on_with_the_version_it_had_and_makes_its_look_again(tmp_path, judge_path):
    versions, first = RewardVersions(tmp_path), BUILTIN_JUDGES["student"]
    versions.begin(judge_hash(first))
    versions.pause(4)
    assert versions.pending == 4 and versions.judge(first) == first
    folder = versions.take(judge_path, 1)
    resumed = RewardVersions(tmp_path)  # killed between the copy and the entry: nothing has changed
    assert resumed.pending == 4 and resumed.number == 0 and resumed.judge(first) == first
    folder = versions.take(judge_path, 1)
    version = Version(1, judge_hash(folder), 4)
    versions.record(look(4, 0, 0.6, {"taken": 1, "accuracy": 0.8}), version)
    resumed = RewardVersions(tmp_path)
    assert resumed.pending is None and resumed.number == 1 and resumed.judge(first) == folder
    assert resumed.numbers() == {judge_hash(first): 0, version.sha256: 1} and resumed.best == 0.8
    resumed.begin(OLD)
    assert resumed.all == (Version(0, judge_hash(first), 0), version), "a run begins once"
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="reward is version 1.*gone or changed"):
        resumed.judge(first)


def test_the_best_look_is_that_of_the_present_version(tmp_path):
    versions = RewardVersions(tmp_path)
    assert versions.best is None and versions.current is None and versions.number == 0
    versions.begin(OLD)
    versions.record(look(4, 0, 0.9))
    versions.record(look(8, 0, None))
    assert versions.best == 0.9
    versions.record(look(12, 0, 0.6, {"taken": 1, "accuracy": 0.7}), Version(1, NEW, 12))
    assert versions.best == 0.7, "0.9 was seen of version 0"
    versions.record(look(16, 1, 0.75))
    assert versions.best == 0.75


# ---- decisions ----


def seen(turned: int, groups: int = 20) -> dict:
    """Order of a student that turns the first `turned` of `groups` pairs over in alignment and agrees elsewhere."""
    items = [AnnotatedImage(f"{g}-{i}", f"g{g}", "test", "a star", "none", {}) for g in range(groups) for i in range(2)]
    teacher = torch.tensor([[1.0 + i % 2] * len(DIMENSIONS) for i in range(2 * groups)])
    student = teacher.clone()
    student[: 2 * turned, 0] = -student[: 2 * turned, 0]
    return three_way(student, teacher, items, PAPER, 20)


def test_drift_by_hand():
    """20 prompts with a pair in each of four dimensions; 8 of the 20 pairs in alignment are turned over."""
    order = seen(8)
    assert order["pooled"]["student/teacher"]["accuracy"] == pytest.approx(72 / 80)
    assert drift_reasons(order, section(pair_limit=0.85), WEIGHTS, None, enough=21) == []
    (one,) = drift_reasons(order, section(pair_limit=0.65), WEIGHTS, None, enough=20)
    assert one == "alignment: 60% of 20 pairs, limit 65%"
    assert drift_reasons(order, section(pair_limit=0.65), WEIGHTS | {"alignment": 0.0}, None, enough=20) == []
    (all_of_them,) = drift_reasons(order, section(pair_limit=0.95), WEIGHTS, None, enough=21)
    assert "orders 90% of 80 same-prompt pairs as its teacher does, limit 95%" in all_of_them
    (fallen,) = drift_reasons(order, section(pair_limit=0.5, drop=0.05), WEIGHTS, 0.96, enough=21)
    assert "fallen from 96% to 90%, limit 5%" in fallen
    assert drift_reasons(order, section(pair_limit=0.5, drop=0.05), WEIGHTS, 0.94, enough=21) == []
    assert drift_reasons(order, section(pair_limit=0.5, drop=None), WEIGHTS, 1.0, enough=21) == []


def test_a_look_without_pairs_decides_nothing():
    items = [AnnotatedImage(str(i), f"g{i}", "test", "a star", "none", {}) for i in range(4)]
    scores = torch.ones(4, len(DIMENSIONS))
    order = three_way(scores, scores, items, PAPER, 20)
    assert drift_reasons(order, section(pair_limit=1.0), WEIGHTS, 1.0, enough=0) == []


def test_a_student_that_is_not_better_on_unseen_prompts_is_not_taken():
    assert not_taken({0: 0.60, 20: 0.66, 40: 0.64}, 20, 0.01) == ""
    assert "orders 60.5% where that orders 60.0%" in not_taken({0: 0.6, 20: 0.605}, 20, 0.01)
    assert "than the start, 60.0%" in not_taken({0: 0.6, 20: 0.55}, 0, 0.0)


# ---- what a run refuses ----


def run_config(tmp_path, **refresh):
    tree = {"run": {"root": tmp_path}, "reward": {"refresh": {"every_steps": 4} | refresh}}
    return T2iConfig.model_validate(tree)


def test_the_teacher_is_not_the_referee(tmp_path):
    folder = tmp_path / "same"
    shutil.copytree(BUILTIN_JUDGES["referee"], folder)  # another folder, the same judge
    config, first = run_config(tmp_path, teacher=str(folder)), BUILTIN_JUDGES["student"]
    with pytest.raises(ConfigError, match="referee must not be the teacher"):
        plan_refresh(config, None, BUILTIN_JUDGES["referee"], first, {})
    assert plan_refresh(config, None, None, first, {}).teacher == folder, "nobody watches"


def test_a_missing_teacher_and_one_of_another_rubric_are_refused(tmp_path, own_judge):
    first = BUILTIN_JUDGES["student"]
    with pytest.raises(JudgeError, match="judge.path must be one of"):
        plan_refresh(run_config(tmp_path, teacher="/nowhere"), None, None, first, {})
    with pytest.raises(CheckpointError, match="needs a finished GDSO run"):
        plan_refresh(run_config(tmp_path, teacher="latest"), None, None, first, {})
    with pytest.raises(JudgeError, match="must have the same dimensions"):
        plan_refresh(run_config(tmp_path, teacher=str(own_judge)), None, None, first, {})


def test_no_phase_of_a_look_holds_the_actors_and_an_update_holds_the_replicas_twice(tmp_path):
    service = {"reward-student": [{"CPU": 1.0}]}
    plan = plan_refresh(run_config(tmp_path), None, BUILTIN_JUDGES["referee"], BUILTIN_JUDGES["student"], service)
    assert all("reward-student" in phase and "actor" not in phase for phase in plan.phases)
    totals = [sum(one["CPU"] for bundles in phase.values() for one in bundles) for phase in plan.phases]
    assert max(totals) == 2 and plan.phases[-1] == {"reward-student": [{"CPU": 1.0}] * 2}, "two cores hold a look"
    assert plan.inputs == {"reward.refresh.teacher": judge_hash(BUILTIN_JUDGES["teacher"])}


def test_a_distillation_is_jobs_risd_on_the_runs_own_pool(tmp_path):
    config = run_config(tmp_path, steps=40, patience=2, evaluate_steps=5)
    run = RunFolder.create(tmp_path, "painter", config, "t2i")
    told = distillation_config(config, run, 2, BUILTIN_JUDGES["student"], BUILTIN_JUDGES["teacher"])
    assert told.run.root == run.path / "reward" / "distillations" and told.run.name == "painter-refresh-2"
    assert told.label.path == run.path / "reward" / "labels" and told.images == config.reward.refresh.images
    assert (told.risd.steps, told.risd.patience, told.evaluation.every_steps) == (40, 2, 5)
    assert RunFolder.open(RunFolder.create(told.run.root, told.run.name, told, "risd").path, told), "it resumes"


# ---- two versions, one group ----


class Changing(RewardSource):
    """A service whose judge changes: images from number `turn` on are scored by the new version, on another scale."""

    def __init__(self, config, turn: int) -> None:
        super().__init__(config)
        self.asked, self.turn = 0, turn

    def answer(self, images, prompts, gradient):
        versions = []
        for _ in prompts:
            versions.append(NEW if self.asked >= self.turn else OLD)
            self.asked += 1
        scale = torch.tensor([10.0 if version == NEW else 1.0 for version in versions]).double()
        mu = images.double().mean((1, 2, 3))[:, None] * scale[:, None]
        zero = torch.zeros_like(mu)
        return Scored(self.names, mu, zero, mu, zero, tuple(versions), ("",) * len(mu))


@pytest.fixture()
def images():
    return torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))


def changing(turn):
    return Changing(T2iConfig.model_validate({"reward": {"weights": {"alignment": 1.0}}}).reward, turn)


def asked(source, images):
    return join_scored([source.submit(images[i : i + 4], ("a",) * 4).result() for i in (0, 4)])


def test_a_step_that_an_update_met_is_scored_again_by_one_version(images):
    source = changing(turn=5)
    source.numbers |= {OLD: 0, NEW: 1}
    mixed = asked(source, images)
    assert mixed.numbers == (0,) * 5 + (1,) * 3
    made = of_one_version(mixed, lambda: asked(source, images))
    assert made.numbers == (1,) * 8 and source.asked == 16
    torch.testing.assert_close(made.mu[:, 0], 10 * images.double().mean((1, 2, 3)))
    sums = reward_metrics(made, source.weights, None, None)
    assert sums["reward/version"] / sums["reward/scored"] == 1
    assert f"{int(sums['reward/judge_hash'] / sums['reward/scored']):08x}" == NEW[:8]
    alone = of_one_version(made, lambda: pytest.fail("asked again without need"))
    assert alone is made
    source.close()


def test_what_stays_mixed_is_left_out_of_its_group(images):
    """Two groups of four: of the second, one image was answered by another version; it has no part in the ranks."""
    source = changing(turn=7)
    mixed = asked(source, images)
    made = of_one_version(mixed, lambda: mixed)
    assert made.numbers == (0,) * 7 + (-1,) and "another version" in made.reasons[7] and made.failed == 1
    rewards = group_rewards(made, source.weights, source.config, 4)
    values, valid = advantages(rewards, "rank")
    assert valid.tolist() == [[True] * 4, [True, True, True, False]]
    by_itself, _ = advantages(rewards[1:, :3], "rank")
    assert torch.equal(values[1, :3], by_itself[0])
    source.close()


def test_gradients_of_what_is_left_out_are_zero(images):
    mixed = asked(changing(turn=6), images)
    slopes = torch.ones(8, 3, 4, 4)
    graded = replace(mixed, reward=mixed.mu[:, 0], gradients=slopes, each=slopes[:, None])
    made = of_one_version(graded, lambda: graded)
    assert made.reward[:6].isfinite().all() and made.reward[6:].isnan().all()
    assert made.gradients[:6].eq(1).all() and made.gradients[6:].eq(0).all() and made.each[6:].eq(0).all()


def test_a_hash_becomes_a_number_and_a_name_a_checksum():
    assert hash_number("0000000f" + "0" * 56) == 15 and hash_number(NEW) == 0xBBBBBBBB
    assert 0 <= hash_number("package.module:function") < 2**32 and hash_number("z" * 64) < 2**32


class Offset(RewardSource):
    """Brightness plus a constant: another scale for every version."""

    constant = 0.0

    def answer(self, images, prompts, gradient):
        mu = to_bytes(images).double().mean((1, 2, 3))[:, None] / 255 + self.constant  # as every source sees them
        zero = torch.zeros_like(mu)
        return Scored(self.names, mu, zero, mu, zero, ("offset",) * len(mu), ("",) * len(mu))


def test_the_untrained_generator_is_scored_anew_by_a_new_version(tmp_path):
    """A change of the reward is no change of the generator: both looks are scored by the version of now."""
    from zr_ray.loops.launch_t2i import T2iTask
    from zr_ray.models.generators.load import generator_folder

    tree = {"generator": {"compiled": False, "steps": 2, "micro_batch": 3}, "reward": {"weights": {"alignment": 1.0}}}
    config = T2iConfig.model_validate(tree)
    worker = GeneratorWorker(generator_folder("builtin"), config.generator, config.actor)
    task = T2iTask(config, tmp_path, worker.folder, (), ("small red circle", "big blue square"), None, 0.0)
    source = Offset(config.reward)
    looks = [Looks(task, worker, source, tmp_path / "held_out", lambda line: None, version) for version in (0, 2)]
    looks[0].look_before()
    source.constant = 5.0
    looks[1].look_before()
    old, new = looks[0].before, looks[1].before
    assert np.array_equal(old.images, new.images) and set(old.figures) == set(new.figures)
    np.testing.assert_allclose(new.figures["reward/sum"], old.figures["reward/sum"] + 5, atol=1e-9)
    np.testing.assert_array_equal(new.figures["verifier/sum"], old.figures["verifier/sum"])
    source.constant = 9.0
    looks[1].look_before()  # scored once a version, then read
    np.testing.assert_array_equal(looks[1].before.figures["reward/sum"], new.figures["reward/sum"])
    assert np.array_equal(
        Look.load(tmp_path / "held_out" / "before.npz").figures["reward/sum"], old.figures["reward/sum"]
    )
    source.close()
