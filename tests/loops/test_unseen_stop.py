"""Early stopping with a real learner: when it is over, which weights are handed out, what a resumed run remembers."""

import json

import pytest
import torch

from zr_ray.config.sections import CheckpointSection
from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.errors import DataError
from zr_ray.loops.journal import Journal
from zr_ray.loops.risd import RisdObjective
from zr_ray.loops.unseen_stop import UNSEEN_FILE, UnseenStop
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.models.questions import QuestionPacker, QuestionRow
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.workers.learner import Learner

D, K = len(DIMENSIONS), len(PAPER.bins)


@pytest.fixture(scope="module")
def learner(judge_path):
    made = Learner(judge_path, LearnerSection(threads=1, lr=3e-3, warmup_steps=0))
    made.packer = QuestionPacker(made.engine.module.model, made.text, PixelPreprocessor.load(judge_path))
    return made


@pytest.fixture()
def update(learner, world_items):
    """One step of learning."""
    units = [[QuestionRow(load_image(item.image), item.prompt, DIMENSIONS)] for item in world_items[:2]]
    target = torch.full((2, D, K), -8.0)
    target[:, :, 0] = 0.0

    def step():
        learner.accumulate(units, RisdObjective(target.log_softmax(-1), torch.ones(2, D) > 0, 2.0 * D, PAPER))
        learner.apply(3e-3)

    return step


def weights(learner):
    return torch.cat([value.flatten().clone() for _, value in learner.named_weights()])


def stop_in(path, learner, patience):
    path.mkdir(exist_ok=True)
    return UnseenStop(Journal(path, learner, CheckpointSection(), 40, 0.0), learner, patience)


def test_training_ends_after_the_best_and_the_best_is_handed_out(learner, update, tmp_path):
    stop = stop_in(tmp_path / "run", learner, patience=2)
    stop.see(0, 0.55)
    update()
    stop.see(10, 0.60)
    best = weights(learner)
    for step, accuracy in ((20, 0.60), (30, 0.58)):  # a tie is not better: the earlier one is handed out
        assert not stop.over()
        update()
        stop.see(step, accuracy)
    assert stop.over() and stop.best_step == 10 and not torch.equal(weights(learner), best)
    found = stop.take_best()
    assert torch.equal(weights(learner), best)
    assert found == {"unseen_pairs": {"0": 0.55, "10": 0.6, "20": 0.6, "30": 0.58}, "best_step": 10}


def test_where_learning_only_harms_the_start_is_handed_out(learner, update, tmp_path):
    stop, start = stop_in(tmp_path / "run", learner, patience=1), weights(learner)
    stop.see(0, 0.7)
    update()
    stop.see(10, 0.6)
    assert stop.over() and stop.take_best()["best_step"] == 0 and torch.equal(weights(learner), start)


def test_a_resumed_run_remembers_what_lies_before_its_checkpoint(learner, tmp_path):
    stop = stop_in(tmp_path / "run", learner, patience=1)
    for step, accuracy in ((0, 0.5), (10, 0.6), (20, 0.55)):
        stop.see(step, accuracy)
    assert json.loads((tmp_path / "run" / UNSEEN_FILE).read_text()) == {"0": 0.5, "10": 0.6, "20": 0.55}
    resumed = stop_in(tmp_path / "run", learner, patience=1)
    resumed.restore(10)
    assert resumed.seen == {0: 0.5, 10: 0.6} and not resumed.over()
    resumed.restore(20)
    assert resumed.over()


def test_no_patience_keeps_nothing_and_no_pairs_are_refused(learner, tmp_path):
    idle = stop_in(tmp_path / "run", learner, patience=0)
    idle.see(0, float("nan"))
    assert not idle.over() and idle.take_best() == {} and not (tmp_path / "run" / UNSEEN_FILE).exists()
    with pytest.raises(DataError, match="risd.patience needs prompts with two images"):
        stop_in(tmp_path / "run", learner, patience=1).see(0, float("nan"))
