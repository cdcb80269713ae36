"""Prompts of the built-in generator: capitals are read, unknown and cut words are counted and said."""

import pytest
from transformers import AutoTokenizer

from zr_ray.builtin.tiny_generator import ASSET, build_tokenizer, unread


@pytest.fixture(params=["shipped", "built"])
def tokenizer(request):
    """As `DiffusionPipeline.from_pretrained` loads it, and as the next pre-training writes it."""
    return AutoTokenizer.from_pretrained(ASSET / "tokenizer") if request.param == "shipped" else build_tokenizer()


def test_capitals_are_the_same_words(tokenizer):
    def ids(text):
        return tokenizer(text)["input_ids"]

    assert ids("Small RED Circle") == ids("small red circle") and tokenizer.unk_token_id not in ids("Small RED Circle")
    assert ids("<|im_end|>")[0] == tokenizer.eos_token_id
    assert unread(tokenizer, ["Small Red Circle left of big BLUE square"]) == []


def test_unknown_and_cut_words_are_said(tokenizer):
    long = "small red circle left of big blue square right of small green cross on big white triangle"  # 17 words
    exact = " ".join(long.split()[:15])
    assert unread(tokenizer, [exact, "small red circle"]) == []
    words, cut = unread(tokenizer, ["a red dog", "small red circle", long, "a fluffy dog"])
    assert words.startswith("2 of 4 prompts hold words") and "('a', 'dog', 'fluffy'; 5 in all)" in words
    assert cut.startswith("1 of 4 prompts have more than 15 words and are cut, for example 'small red circle left of")
