"""OPD's objective by hand, the teacher's log-probs against a plain forward, and real steps that bring the reverse KL
down."""

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.errors import JudgeError
from zr_ray.loops.opd import FrozenTeacher, OpdObjective, rollout_sums, step_questions
from zr_ray.models.judge import JudgeOutputs, load_packed_judge
from zr_ray.models.packing import Row
from zr_ray.records import Judgement
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.workers.learner import Learner

K = len(SCORE_BINS)


def judgement(logprobs, score_index=0):
    return Judgement("x", 0, np.zeros(len(logprobs), np.int32), np.asarray(logprobs, np.float32), score_index, None, 0)


def outputs(logprobs, lengths):
    mask = torch.arange(logprobs.shape[1])[None] < torch.tensor(lengths)[:, None]
    n = len(lengths)
    return JudgeOutputs(
        logprobs * mask,
        mask,
        torch.full((n, K), -3.0),
        torch.ones(n, dtype=torch.bool),
        torch.zeros(n, dtype=torch.long),
    )


def test_loss_gradient_and_sums_by_hand():
    """Two questions, two outputs each, of 2, 1, 1 and 2 tokens; one output is malformed."""
    old = [judgement([-1.0, -2.0]), judgement([-0.5], None), judgement([-3.0]), judgement([-1.0, -1.0])]
    teacher = [np.array(v, np.float32) for v in ([-2.0, -1.0], [-0.5], [-1.0], [-1.5, -1.0])]
    totals = rollout_sums([old[:2], old[2:]], teacher)
    assert totals == {"tokens": 6.0, "samples": 4.0, "malformed": 1.0, "reverse_kl": 1 - 1 + 0 - 2 + 0.5}
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0], [-3.0, 0.0], [-1.0, -1.0]], requires_grad=True)
    loss, _ = OpdObjective(teacher, old, 2, totals)(outputs(logprobs, [2, 1, 1, 2]), [0, 1], None)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    wanted = -torch.tensor([[-1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [-0.5, 0.0]]) / 6  # -A / tokens
    torch.testing.assert_close(gradient, wanted)
    # the units of a micro-batch come in any order; the parts add up
    objective = OpdObjective(teacher, old, 2, totals)
    parts = [
        objective(outputs(logprobs[[2, 3]], [1, 2]), [1], None)[0],
        objective(outputs(logprobs[[0, 1]], [2, 1]), [0], None)[0],
    ]
    torch.testing.assert_close(sum(parts), loss)
    assert objective.ratio_max_abs_diff == 0


def test_every_question_comes_once_an_epoch():
    questions = [q for step in range(5) for q in step_questions(step, 8, 10, len(DIMENSIONS), seed=1)]
    assert sorted(questions) == [(i, d) for i in range(10) for d in range(len(DIMENSIONS))]


@pytest.fixture(scope="module")
def learner(judge_path):
    return Learner(judge_path, LearnerSection(threads=1, lr=1e-3, warmup_steps=0, max_tokens_per_microbatch=400))


@pytest.fixture(scope="module")
def strict_teacher(judge_path, tmp_path_factory):
    """The built-in judge with a taste: it likes label 3 much better than the others."""
    folder = tmp_path_factory.mktemp("teacher") / "judge"
    shutil.copytree(judge_path, folder)
    weights = load_file(folder / "model.safetensors")
    label = load_packed_judge(judge_path, torch.float32)[1].label_ids[2]
    weights["lm_head.weight"][label] += 0.3 * weights["lm_head.weight"][label + 1]
    weights["lm_head.weight"][label] *= 1.3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def direct_rows(learner, items, labels):
    """One direct question per item in dimension 0; every completion is one label."""
    text = learner.text
    return [
        Row(
            text.question(item.prompt, DIMENSIONS[0], direct=True),
            load_image(item.image),
            tuple(np.array([text.label_ids[k]], np.int32) for k in own),
            (0,) * len(own),
        )
        for item, own in zip(items, labels, strict=True)
    ]


def test_teacher_logprobs_are_its_own_forward(learner, strict_teacher, world_items):
    teacher = FrozenTeacher(strict_teacher, learner)
    rows = direct_rows(learner, world_items[:5], [range(K)] * 5)
    got = np.concatenate(teacher.logprobs(rows)).reshape(5, K)
    judge, _, packer = load_packed_judge(strict_teacher, torch.float32)
    with torch.no_grad():
        for row, own in zip(rows, got, strict=True):
            np.testing.assert_allclose(own, judge(packer.pack([row])).logprobs[:, 0], atol=1e-5)
    with torch.no_grad():
        student = learner.forward(rows).logprobs[:, 0].view(5, K).numpy()
    assert np.abs(got - student).max() > 0.1  # the two do differ
    assert not any(p.requires_grad for p in teacher.judge.parameters())


def test_a_student_that_is_its_teacher_stays(learner, judge_path, world_items):
    teacher = FrozenTeacher(judge_path, learner)
    rows = direct_rows(learner, world_items[:4], [[0, 3], [2, 5], [8, 8], [1, 7]])
    teacher_logprobs = teacher.logprobs(rows)
    old = [judgement([float(v)]) for v in learner.forward(rows).logprobs[:, 0]]
    totals = rollout_sums([old], teacher_logprobs)
    assert abs(totals["reverse_kl"]) < 1e-4
    learner.accumulate([[row] for row in rows], OpdObjective(teacher_logprobs, old, 2, totals))
    assert learner.apply(0.0)["learner/grad_norm"] < 1e-4


def test_steps_bring_the_reverse_kl_down(learner, strict_teacher, world_items):
    items, generator = world_items[:8], torch.Generator().manual_seed(0)
    teacher = FrozenTeacher(strict_teacher, learner)
    every = direct_rows(learner, items, [range(K)] * 8)
    target = torch.from_numpy(np.concatenate(teacher.logprobs(every))).view(8, K)

    def reverse_kl():
        student = learner.forward(every).logprobs[:, 0].view(8, K)
        return float((student.exp() * (student - target)).sum(-1).mean())

    start = reverse_kl()
    for _ in range(15):
        student = learner.forward(every).logprobs[:, 0].view(8, K)
        labels = torch.multinomial(student.exp(), 16, replacement=True, generator=generator)
        rows = direct_rows(learner, items, labels.tolist())
        teacher_logprobs = teacher.logprobs(rows)
        old = [judgement([float(v)]) for v in student.gather(1, labels).flatten()]
        learner.accumulate(
            [[row] for row in rows], OpdObjective(teacher_logprobs, old, 16, rollout_sums([old], teacher_logprobs))
        )
        learner.apply(1e-3)
    assert math.isfinite(start) and reverse_kl() < 0.7 * start, (start, reverse_kl())


def test_a_teacher_with_other_tokens_is_refused(learner, judge_path, tmp_path):
    shutil.copytree(judge_path, tmp_path / "judge")
    file = tmp_path / "judge" / "tokenizer.json"
    file.write_text(file.read_text().replace('"circle"', '"disc"'))
    with pytest.raises(JudgeError, match="student's tokens"):
        FrozenTeacher(tmp_path / "judge", learner)
