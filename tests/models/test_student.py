"""One forward for four dimensions equals four separate ones, under any template, and its pixel gradient is exact."""

import json
import shutil

import numpy as np
import pytest
import torch

from zr_ray.models.questions import QuestionRow, common_prefix
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS, SCORE_BINS

PROMPTS = ["a small red circle", "a blue square left of a large green star", "purple"]


@pytest.fixture(scope="module")
def student(judge_path):
    return Student(judge_path)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def variant(judge_path, folder, questions, image_last=False):
    """The built-in judge under another chat: other questions, and (image_last) the text before the image."""
    shutil.copytree(judge_path, folder)
    path = folder / "scoring_format.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"questions": questions}))
    if image_last:
        template = folder / "chat_template.jinja"
        parts = "{%- for part in message.content -%}"
        assert parts in template.read_text()
        template.write_text(template.read_text().replace(parts, "{%- for part in message.content | reverse -%}"))
    return Student(folder)


@torch.no_grad()
def separate_forwards(student, images, prompts, dimensions=DIMENSIONS):
    """[B, D, K] by plain transformers calls, one image and one question each: its own positions, causal mask and
    vocabulary."""
    model, text, rows = student.judge.model, student.text, []
    for image, prompt in zip(images, prompts, strict=True):
        patches, grid = student.preprocess(image[None])
        for dimension in dimensions:
            question = text.question(prompt, dimension, direct=True)
            at = int(np.flatnonzero(question == text.image_token_id)[0])
            count = int(grid.prod()) // student.preprocess.merge_size**2
            ids = torch.tensor([[*question[:at], *[text.image_token_id] * count, *question[at + 1 :]]])
            types = (ids == text.image_token_id).int()
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=patches,
                image_grid_thw=grid,
                mm_token_type_ids=types,
            ).logits
            rows.append(logits[0, -1, list(text.label_ids)].log_softmax(-1))
    return torch.stack(rows).view(len(images), len(dimensions), -1)


def test_one_forward_equals_four_separate_ones(student, images):
    got = student(images, PROMPTS)
    expected = separate_forwards(student, images, PROMPTS)
    assert len(student.questions.layout(PROMPTS[0], DIMENSIONS, (8, 8))) == 1  # it did branch
    torch.testing.assert_close(got.log_q, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.mu, (expected.exp() * torch.tensor(SCORE_BINS)).sum(-1), atol=1e-5, rtol=0)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3  # the questions do differ, so the test can fail
    assert ((got.outside >= 0) & (got.outside <= 1)).all()


TEMPLATES = {
    "prompt first": ({d: f"{{prompt}} {d}" for d in DIMENSIONS}, False, 1),
    "equal beginnings": ({d: "{prompt} " + "realism " * n + d for n, d in enumerate(DIMENSIONS)}, False, 1),
    "dimension before the image": ({d: f"{d} {{prompt}}" for d in DIMENSIONS}, True, 4),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_template_is_exact(name, judge_path, tmp_path, images):
    questions, image_last, sequences = TEMPLATES[name]
    student = variant(judge_path, tmp_path / "judge", questions, image_last)
    assert len(student.questions.layout(PROMPTS[0], DIMENSIONS, (8, 8))) == sequences
    torch.testing.assert_close(
        student(images, PROMPTS).log_q, separate_forwards(student, images, PROMPTS), atol=1e-5, rtol=0
    )


def test_unrolled_sequences_equal_branches(student, images, monkeypatch):
    branching = student(images, PROMPTS)
    monkeypatch.setattr(student.questions, "branching", False)
    assert len(student.questions.layout(PROMPTS[0], DIMENSIONS, (8, 8))) == 4
    torch.testing.assert_close(student(images, PROMPTS).log_q, branching.log_q, atol=1e-5, rtol=0)


def test_batch_and_order_do_not_change_an_item(student, images):
    together = student(images, PROMPTS).log_q
    for i in range(3):
        torch.testing.assert_close(
            student(images[i : i + 1], PROMPTS[i : i + 1]).log_q[0], together[i], atol=1e-5, rtol=0
        )
    turned = student(images.flip(0), PROMPTS[::-1]).log_q.flip(0)
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=0)


def test_some_dimensions_in_any_order(student, images):
    every = student(images, PROMPTS).log_q
    some = student(images, PROMPTS, ("plausibility", "alignment")).log_q
    torch.testing.assert_close(some, every[:, [3, 0]], atol=1e-5, rtol=0)
    torch.testing.assert_close(student(images, PROMPTS, ["realism"]).log_q, every[:, 1:2], atol=1e-5, rtol=0)


def test_images_that_need_a_resize(student):
    images = torch.rand(2, 3, 100, 80, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        student(images, PROMPTS[:2]).log_q, separate_forwards(student, images, PROMPTS[:2]), atol=1e-5, rtol=0
    )


def test_learner_rows_equal_the_forward_on_pixels(student):
    rng = np.random.default_rng(6)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((64, 64, 3), (100, 80, 3), (64, 64, 3))]
    rows = [QuestionRow(a, p, DIMENSIONS) for a, p in zip(arrays, PROMPTS, strict=True)]
    with torch.no_grad():
        packed = student.questions.pack(rows)
        labels = student.judge(packed).score_logprobs.view(3, 4, -1)
    for i, array in enumerate(arrays):
        alone = student(torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255, PROMPTS[i : i + 1]).log_q[0]
        torch.testing.assert_close(labels[i].log_softmax(-1), alone, atol=1e-5, rtol=0)
    assert packed.input_ids.shape == (
        3,
        max(student.questions.length(row, student.questions.image_tokens(row.image)) for row in rows),
    )


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_pixel_gradient_by_finite_differences_in_float64(judge_path, size):
    student = Student(judge_path, torch.float64)
    generator = torch.Generator().manual_seed(7)
    images = 0.2 + 0.6 * torch.rand(2, 3, *size, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, 4, dtype=torch.float64, generator=generator)

    def reward(pixels):
        return (student(pixels, PROMPTS[:2]).mu * weights).sum()

    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(pixels), pixels)
    assert gradient.abs().max() > 1e-6 and gradient[0].abs().max() > 0 and gradient[1].abs().max() > 0
    with torch.no_grad():
        for _ in range(4):
            direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
            numeric = (reward(images + 1e-5 * direction) - reward(images - 1e-5 * direction)) / 2e-5
            torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-9)
        for flat in torch.randint(images.numel(), (6,), generator=generator).tolist():  # single pixels
            bump = torch.zeros_like(images).view(-1)
            bump[flat] = 1e-4
            numeric = (reward(images + bump.view_as(images)) - reward(images - bump.view_as(images))) / 2e-4
            torch.testing.assert_close(
                gradient.view(-1)[flat], numeric, rtol=1e-4, atol=1e-7 * float(gradient.abs().max())
            )


def test_float64_equals_float32_and_gradients_reach_frozen_students(judge_path, student, images):
    double = Student(judge_path, torch.float64)(images, PROMPTS)
    assert double.mu.dtype == torch.float64
    torch.testing.assert_close(double.log_q.float(), student(images, PROMPTS).log_q, atol=1e-5, rtol=0)
    pixels = images.clone().requires_grad_()
    student(pixels, PROMPTS).mu.sum().backward()
    assert pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert all(p.grad is None for p in student.parameters())


def test_wrong_calls_say_what_to_do(student, images):
    with pytest.raises(ValueError, match="one prompt"):
        student(images, PROMPTS[:2])
    with pytest.raises(ValueError, match="beauty"):
        student(images, PROMPTS, ["beauty"])


def test_common_prefix_by_hand():
    assert common_prefix([np.array([1, 2, 3, 4]), np.array([1, 2, 5, 4])]) == 2
    assert (
        common_prefix([np.array([1, 2, 3]), np.array([1, 2, 3, 4])]) == 2
    )  # one is the beginning of the other: each keeps a token
    assert common_prefix([np.array([7, 8])]) == 1
    assert common_prefix([np.array([1, 2]), np.array([3, 2])]) == 0
