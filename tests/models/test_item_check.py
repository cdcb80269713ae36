"""What a judge cannot be asked about is found when data is loaded: control tokens, length, shape of the image."""

from pathlib import Path

import pytest

from zr_ray.models.item_check import JudgeItemCheck
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.records import AnnotatedImage


@pytest.fixture(scope="module")
def text(judge_path):
    return JudgeText(judge_path)


def item(prompt):
    return AnnotatedImage("i", "g", "test", prompt, Path("x.png"), {"realism": 3.0})


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_control_tokens_are_refused_as_the_service_refuses_them(text, token):
    reason = JudgeItemCheck(text)(item(f"a red {token} cube"), 64, 64)
    assert reason is not None and token in reason and "control tokens" in reason


def test_the_limit_counts_question_image_and_output(text):
    image = PixelPreprocessor.load(text.folder).image_tokens(64, 64)
    prompt = "a small red cube left of a large blue sphere"
    longest = max(len(text.question(prompt, d)) for d in text.rubric.dimensions)
    exact = longest - 1 + image + 32  # the placeholder stands for the image
    assert JudgeItemCheck(text, exact, 32)(item(prompt), 64, 64) is None
    reason = JudgeItemCheck(text, exact - 1, 32)(item(prompt), 64, 64)
    assert f"at most {longest - 1} tokens" in reason and f"got {longest}" in reason and "max_model_len" in reason


def test_a_prompt_of_five_thousand_words_is_refused_and_an_ordinary_one_is_not(text):
    check = JudgeItemCheck(text, 256, 32)
    assert check(item("a small red cube"), 64, 64) is None
    assert "shorten the prompt" in check(item("red " * 5000), 64, 64)
    assert JudgeItemCheck(text)(item("red " * 40000), 64, 64) is not None  # the model's own limit


def test_the_longest_question_is_remembered_and_a_bound_is_counted_out_where_it_matters(text):
    check = JudgeItemCheck(text, None, 32)
    assert check.need is None
    prompts = ("a cube", "a small red cube left of a large blue sphere")
    assert [check(item(p), 64, side) for p, side in zip(prompts, (64, 128), strict=True)] == [None, None]
    image = PixelPreprocessor.load(text.folder).image_tokens(64, 128)
    longest = max(len(text.question(prompts[1], d)) for d in text.rubric.dimensions) - 1 + image
    # the bound: 8 of slack, and the one word in the template it is measured with
    assert longest <= check.need.tokens <= longest + 9 and check.need.image in ((64, 64), (64, 128))
    room = longest + 32  # the bound of the first, roomy question must not refuse the second one
    tight = JudgeItemCheck(text, room, 32)
    tight._lengths[prompts[1]] = longest + 40
    assert tight(item(prompts[1]), 64, 128) is None


def test_an_image_that_takes_more_than_the_limit_is_named_with_its_size(text):
    reason = JudgeItemCheck(text, 40, 32)(item("a cube"), 64, 64)
    assert "an image of 64 x 64 pixels takes 16 tokens" in reason and "more than 40" in reason


def test_an_image_that_no_judge_of_this_kind_reads_is_refused(text):
    assert "ratio below 200" in JudgeItemCheck(text)(item("a cube"), 3, 900)
