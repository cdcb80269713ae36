"""Fitting a judge to scores: what is asked, what a step changes, that a killed run goes on, what is saved."""

import numpy as np
import pytest
import torch

from zr_ray.builtin import judge_fitting
from zr_ray.builtin.judge_fitting import FitConfig, JudgeFitting, soft_labels
from zr_ray.builtin.tiny_judge import TinySize, TowerSize, build_tiny_judge
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.world import vocabulary
from zr_ray.world.image_pool import ImagePool, PoolRecipe, SamplingShare, packed_readings, scores_of
from zr_ray.world.prompts import is_held_out, known_prompts
from zr_ray.world.render import render
from zr_ray.world.sampling import sample_group
from zr_ray.world.verifier.reading import read_scene


@pytest.fixture(scope="module")
def pool():
    """Six prompts x 4 rendered images, read by the verifier."""
    prompts = tuple(known_prompts()[500:506])
    images = np.stack([render(sample_group(np.random.default_rng(i), 1)[0].scene) for i in range(24)])
    owner, readings = np.arange(24) // 4, [read_scene(image) for image in images]
    scores = np.array([scores_of(r, prompts[p]) for r, p in zip(readings, owner, strict=True)])
    share = np.zeros(24, int)
    columns = packed_readings(readings)
    return ImagePool(prompts, (SamplingShare(8, 0.0, 1.0),), images, owner, share, **columns, scores=scores)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained judge with patches of 4 and without a deepstack tap."""
    path = tmp_path_factory.mktemp("judge")
    tower = TowerSize(patch=4, merge=4, depth=1, width=32, heads=2, deepstack=False)
    build_tiny_judge(path, vocabulary(), 0, TinySize(1, 64, 2, 1, 96), tower)
    return path


@pytest.fixture
def run(folder, pool, monkeypatch):
    monkeypatch.setattr(judge_fitting, "named_pool", lambda name: PoolRecipe((), 1, (), 0, name))
    monkeypatch.setattr(judge_fitting, "load_pool", lambda recipe, at_least: pool)
    return JudgeFitting(FitConfig(generated=4, rendered=2, edits=1, warmup_steps=1), folder)


def test_soft_labels_are_centered_distributions():
    labels = soft_labels(torch.tensor([3.0, 2.3]), 0.3)
    assert torch.allclose(labels.sum(-1), torch.ones(2))
    assert (labels @ torch.tensor(SCORE_BINS)).tolist() == pytest.approx([3.0, 2.3], abs=0.02)


def test_every_image_is_asked_its_dimensions_and_an_edit_never_held_out(run):
    examples = run.draw(3)
    rows, scores = run.questions(3, examples)
    assert len(examples) == 6 and [len(row) for row in rows] == [5] * 6 and len(scores) == 30
    assert scores.view(6, 5)[:, :4].tolist() == [pytest.approx([e.truth[d] for d in DIMENSIONS]) for e in examples]
    assert not any(is_held_out(e.prompt) for e in examples)
    assert [e.prompt for e in run.draw(3)] == [e.prompt for e in examples]  # a function of seed and step


def test_steps_lower_the_loss_and_a_resumed_run_goes_on_alike(run, folder, pool, tmp_path):
    losses = [run.step(0.0)["kl"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    run.save(tmp_path / "checkpoint.pt")
    other = JudgeFitting(run.config, folder)
    other.load(tmp_path / "checkpoint.pt")
    first, second = run.step(0.5), other.step(0.5)
    assert first == pytest.approx(second, rel=1e-5)


def test_a_saved_judge_says_what_was_measured(run, folder, pool, tmp_path):
    """The training's own packing against the student everyone else uses."""
    run.step(0.0)
    run.averaged.save_pretrained(tmp_path / "weights")
    for path in folder.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    prompts = [pool.prompts[i] for i in pool.prompt[:8]]
    measured = run.mu(pool.images[:8], prompts)
    pixels = torch.from_numpy(pool.images[:8]).movedim(-1, 1).float() / 255
    with torch.no_grad():
        served = Student(tmp_path / "weights")(pixels, prompts).mu
    assert (measured.double() - served.double()).abs().max() < 1e-4
    figures = run.watch(pool)
    assert set(figures) >= {"pairs/alignment", "spread/realism", "best_of_n_gain", "oracle_gain"}
