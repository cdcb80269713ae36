"""RISD's objective by hand, its data order, and real steps: the student moves to the teacher, one forward for four
questions."""

import math

import numpy as np
import pytest
import torch

from zr_ray.config.risd import RisdSection
from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.data.labels import Label, fingerprint
from zr_ray.judging.ask import question, score
from zr_ray.judging.direct import judge_directly
from zr_ray.loops.held_out_taught import compared, labeled, mean_log_q
from zr_ray.loops.risd import OfflineTeacher, RisdObjective, distillation_targets, step_items
from zr_ray.models.judge import JudgeOutputs
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.models.questions import QuestionPacker, QuestionRow
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS, PAPER, SCORE_BINS
from zr_ray.workers.learner import Learner

K, D = len(SCORE_BINS), len(DIMENSIONS)


def outputs(label_logprobs):
    """What a packed forward over U items in four dimensions returns; label_logprobs: [U, D, K]."""
    flat = label_logprobs.reshape(-1, K)
    return JudgeOutputs(
        flat[:, :1],
        torch.ones(len(flat), 1, dtype=torch.bool),
        flat,
        torch.ones(len(flat), dtype=torch.bool),
        torch.zeros(len(flat)),
    )


@pytest.fixture()
def case():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5, D, K, generator=generator).log_softmax(-1)
    valid = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4, [True] * 4, [True, True, False, False]])
    targets[~valid] = math.nan  # what a label set holds where no trace was well formed
    student = (torch.randn(5, D, K, generator=generator) - 3).requires_grad_()
    return targets, valid, student


def test_loss_and_gradient_by_hand(case):
    targets, valid, student = case
    loss, sums = RisdObjective(targets, valid, float(valid.sum()), PAPER)(outputs(student), list(range(5)), None)
    expected, count = 0.0, 0
    for i, d in valid.nonzero().tolist():
        p, log_q = targets[i, d].exp(), student[i, d].detach().log_softmax(-1)
        expected += float((p * (p.log() - log_q)).sum())
        count += 1
    assert count == 13 and math.isclose(float(loss), expected / 13, rel_tol=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    by_hand = (student.detach().softmax(-1) - targets.exp()) / 13  # d KL / d logits = q_student - q_teacher
    torch.testing.assert_close(gradient[valid], by_hand[valid])
    assert (gradient[~valid] == 0).all()
    gaps = ((targets.exp() - student.detach().softmax(-1)) @ torch.tensor(SCORE_BINS)).abs()
    assert math.isclose(sums["student/mu_gap"], float(gaps[valid].mean()), rel_tol=1e-5) and math.isclose(
        sums["loss/total"], float(loss)
    )


def test_loss_adds_up_over_any_split(case):
    targets, valid, student = case
    objective = RisdObjective(targets, valid, float(valid.sum()), PAPER)
    whole = objective(outputs(student), list(range(5)), None)
    parts = [objective(outputs(student[units]), units, None) for units in ([3, 1], [2], [0, 4])]
    torch.testing.assert_close(sum(p[0] for p in parts), whole[0])
    for name, value in whole[1].items():
        assert math.isclose(sum(p[1][name] for p in parts), value, rel_tol=1e-5), name
    assert parts[1][0] == 0 and torch.autograd.grad(parts[1][0], student)[0].abs().max() == 0  # no label, no pull


def test_targets_are_the_teacher_unless_asked_otherwise(case, world_items):
    targets, valid, _ = case
    items = world_items[:5]
    assert torch.equal(distillation_targets(targets, valid, items, RisdSection(), PAPER)[valid], targets[valid])
    flat = distillation_targets(targets, valid, items, RisdSection(temperature=1e6), PAPER)
    torch.testing.assert_close(flat[valid], torch.full_like(flat[valid], -math.log(K)), atol=1e-4, rtol=0)
    mixed = distillation_targets(targets, valid, items, RisdSection(label_weight=0.25), PAPER).exp()
    for i, d in valid.nonzero().tolist():
        human = items[i].scores.get(DIMENSIONS[d])
        label = torch.zeros(K)
        if human is not None:
            label[SCORE_BINS.index(human)] = 1
        expected = targets[i, d].exp() if human is None else 0.75 * targets[i, d].exp() + 0.25 * label
        torch.testing.assert_close(mixed[i, d], expected)


def test_every_item_comes_once_an_epoch_and_steps_are_repeatable():
    steps = [step_items(step, 6, 15, seed=3) for step in range(5)]
    assert sorted(i for s in steps for i in s) == sorted(list(range(15)) * 2)
    assert (
        steps
        == [step_items(step, 6, 15, seed=3) for step in range(5)]
        != [step_items(step, 6, 15, seed=4) for step in range(5)]
    )
    assert [i for s in steps for i in s][:15] != [i for s in steps for i in s][15:]


def made_labels(items):
    """A teacher that is sure of the bin (item + dimension) mod K, and silent on item 1 in realism."""
    known = {}
    for n, item in enumerate(items):
        log_q = torch.full((D, K), -6.0)
        for d in range(D):
            log_q[d, (n + d) % K] = 0.0
        valid = np.array([2, 0 if n == 1 else 2, 2, 2])
        log_q = log_q.log_softmax(-1).numpy()
        log_q[valid == 0] = math.nan
        known[fingerprint(item)] = Label(log_q, valid, np.full(D, 20), "here:1", None)
    return known


def test_label_sets_line_up_with_items(world_items):
    items = world_items[:4]
    known = made_labels(items)
    log_q, valid = OfflineTeacher(items, known).distributions([2, 1], step=0)
    assert log_q.argmax(-1).tolist()[0] == [2, 3, 4, 5] and valid.tolist() == [[True] * 4, [True, False, True, True]]
    judged = labeled(items, known, PAPER)
    assert judged.mu[1, 1].isnan() and judged.malformed[1].tolist() == [0, 1, 0, 0] and judged.tokens.mean() == 20
    assert abs(float(judged.mu[0, 0]) - 1.0) < 0.1 and abs(float(judged.mu[3, 3]) - SCORE_BINS[6]) < 0.1
    said = mean_log_q(judged)
    gap = compared(said, said.roll(1, 0), items, PAPER, 20, 0)
    assert (
        gap["dimensions"]["realism"]["items"] == 2 and gap["pooled"]["items"] == 14
    )  # no label on one side or the other
    assert gap["pooled"]["kl"] > 1 and compared(said, said, items, PAPER, 20, 0)["pooled"]["mu_gap"] == 0


@pytest.fixture(scope="module")
def learner(judge_path):
    made = Learner(judge_path, LearnerSection(threads=1, lr=3e-3, warmup_steps=0, max_tokens_per_microbatch=300))
    made.packer = QuestionPacker(made.engine.module.model, made.text, PixelPreprocessor.load(judge_path))
    return made


def test_direct_judging_equals_the_student_and_the_engine(fleet, learner, judge_path, world_items):
    """Three roads to the same distribution: learner in micro-batches, student on float pixels, vLLM with one token."""
    items = world_items[:6]
    judged = judge_directly(learner, items, batch_items=4)
    student = Student(judge_path)
    pixels = torch.stack([torch.from_numpy(load_image(item.image)).permute(2, 0, 1) for item in items]).float() / 255
    direct = student(pixels, [item.prompt for item in items])
    torch.testing.assert_close(judged.q.float(), direct.log_q.exp(), atol=1e-5, rtol=0)
    requests = [question(student.text, item, d, 0, direct=True) for item in items for d in DIMENSIONS]
    answers = np.stack([a.score_logprobs for a in score(fleet.workers, requests, 120, "test")])
    engine = torch.from_numpy(answers).log_softmax(-1).view(6, D, K)
    torch.testing.assert_close(engine, direct.log_q, atol=1e-5, rtol=0)
    assert judged.tokens.tolist() == [[1.0] * D] * 6


def test_a_step_moves_the_student_to_its_teacher(learner, world_items):
    items = world_items[:8]
    log_q, valid = OfflineTeacher(items, made_labels(items)).distributions(range(8), step=0)
    units = [[QuestionRow(load_image(item.image), item.prompt, DIMENSIONS)] for item in items]
    losses = []
    for _ in range(12):
        stats = learner.accumulate(units, RisdObjective(log_q, valid, float(valid.sum()), PAPER))
        learner.apply(3e-3)
        losses.append(stats.sums["loss/total"])
    assert stats.microbatches > 1 and all(map(math.isfinite, losses))
    assert losses[-1] < 0.9 * losses[0], losses
