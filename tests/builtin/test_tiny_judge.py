"""The built-in judge's folder: tokens, template, pixels, and what the shipped weights write."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_judges import tokenizer_core
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from zr_ray.builtin.tiny_judge import SPECIAL_TOKENS, build_tiny_judge, build_tokenizer
from zr_ray.errors import JudgeError
from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.rubric import DIMENSIONS, ScoringFormat, label_token_ids
from zr_ray.world import render, sample_candidates, vocabulary

WORDS = ["small", "red", "circle", "left", "of", "ok", "bad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    build_tiny_judge(path, WORDS, seed=3)
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def _ask(processor, scoring: ScoringFormat, prompt: str, dimension: str) -> str:
    return processor.tokenizer.apply_chat_template(
        scoring.messages(prompt, dimension), tokenize=False, add_generation_prompt=True
    )


def test_every_word_is_one_token_and_specials_come_first(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    for word in [*WORDS, *DIMENSIONS, "score", *"123456789"]:
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
    assert tokenizer.unk_token_id not in tokenizer.encode("small red circle", add_special_tokens=False)
    assert tokenizer.encode("elephant", add_special_tokens=False) == [tokenizer.unk_token_id]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer.encode("circle ok score 7", add_special_tokens=False)) == "circle ok score 7"


def test_template_renders_a_short_question_that_ends_where_the_answer_begins(folder, processor):
    text = _ask(processor, ScoringFormat.load(folder), "small red circle", "realism")
    assert text == "<|vision_start|><|image_pad|><|vision_end|>realism small red circle <|im_start|>"
    ids = processor.tokenizer.encode(text + "score", add_special_tokens=False)
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert names[-2:] == ["<|im_start|>", "score"] and names.count("<|image_pad|>") == 1 and len(names) == 9


def test_a_64_pixel_image_is_neither_resized_nor_shifted(folder, processor):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    features = processor.image_processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    assert features["image_grid_thw"].tolist() == [[1, 8, 8]]
    # patches come in 2 x 2 blocks: (row block, column block, row in block, column in block, channel, frame, y, x)
    patches = features["pixel_values"].reshape(4, 4, 2, 2, 3, 2, 8, 8)
    assert torch.equal(patches[..., 0, :, :], patches[..., 1, :, :])
    image = patches[..., 0, :, :].permute(0, 2, 5, 1, 3, 6, 4).reshape(64, 64, 3)
    torch.testing.assert_close(image, torch.from_numpy(pixels).float() / 127.5 - 1, atol=1e-6, rtol=0)


def test_another_size_is_brought_to_the_same_area(processor):
    features = processor.image_processor(images=[Image.new("RGB", (256, 256))], return_tensors="pt")
    assert features["image_grid_thw"].tolist() == [[1, 8, 8]]


def test_forward_sees_the_image(folder, processor):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    text = _ask(processor, ScoringFormat.load(folder), "small red circle", "alignment")
    logits = []
    for color in ("red", "blue"):
        inputs = processor(text=[text], images=[Image.new("RGB", (64, 64), color)], return_tensors="pt")
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert logits[0].shape == (len(processor.tokenizer),)
    assert (logits[0] - logits[1]).abs().max() > 1e-6


def test_same_seed_same_weights_and_callers_random_state_untouched(folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_tiny_judge(tmp_path, WORDS, seed=3)
    assert torch.equal(torch.rand(1), expected)
    with safe_open(folder / "model.safetensors", "pt") as a, safe_open(tmp_path / "model.safetensors", "pt") as b:
        assert a.keys() == b.keys() and all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())


@pytest.mark.parametrize("words", [["two words"], [""], []])
def test_unusable_vocabulary_is_refused(words):
    with pytest.raises(JudgeError, match="words without white space"):
        build_tokenizer(words)


def test_labels_of_two_tokens_and_unknown_labels_are_refused():
    tokenizer = build_tokenizer(WORDS)
    assert len(set(label_token_ids(tokenizer, tuple("123456789")))) == 9
    with pytest.raises(
        JudgeError, match=r"'4 5' must be exactly one token, this tokenizer makes 2 of it: \['4', '5'\]"
    ):
        label_token_ids(tokenizer, ("4 5", *"12345678"))
    with pytest.raises(JudgeError, match="'ten' is unknown"):
        label_token_ids(tokenizer, ("ten", *"12345678"))


def test_labels_that_share_a_token_are_refused():
    core = Tokenizer(WordLevel({"<u>": 0, **{c: i + 1 for i, c in enumerate("abcdefgh")}}, unk_token="<u>"))
    core.normalizer, core.pre_tokenizer = Lowercase(), WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<u>")
    assert label_token_ids(tokenizer, tuple("abcdefgh")) == tuple(range(1, 9))
    with pytest.raises(JudgeError, match="share a token"):
        label_token_ids(tokenizer, tuple("abcdefghA"))


def test_digits_are_single_tokens_of_a_real_qwen_tokenizer():
    core = tokenizer_core(pairs=None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert len(set(label_token_ids(tokenizer, ScoringFormat().labels))) == 9
    with pytest.raises(JudgeError, match="'4.5' must be exactly one token, this tokenizer makes 3"):
        label_token_ids(tokenizer, ("4.5", *"12345678"))


@pytest.mark.parametrize("name", ["builtin", "small"])
def test_shipped_judge_fits_its_world_and_its_limits(name):
    folder = BUILTIN_JUDGES[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert set(vocabulary()) <= set(tokenizer.get_vocab())
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    with safe_open(folder / "model.safetensors", "pt") as weights:
        sizes = [weights.get_slice(k) for k in weights.keys()]
        assert all(s.get_dtype() == "F32" for s in sizes)
        assert 0.9e6 <= sum(int(np.prod(s.get_shape())) for s in sizes) <= 3e6


@pytest.mark.parametrize("name", ["builtin", "small"])
def test_shipped_judge_writes_well_formed_answers_about_what_it_sees(name):
    """Greedy, through the public classes only; 24 images x 4 dimensions. Chance of an exact realism chain would be
    about 1 %."""
    folder = BUILTIN_JUDGES[name]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    scoring, stream = ScoringFormat.load(folder), sample_candidates(seed=77)
    candidates = [next(stream) for _ in range(24)]
    formed, exact = 0, 0
    for dimension in DIMENSIONS:
        texts = [_ask(processor, scoring, c.prompt, dimension) for c in candidates]
        images = [[Image.fromarray(render(c.scene))] for c in candidates]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=40)[:, inputs["input_ids"].shape[1] :]
        for candidate, answer in zip(
            candidates, processor.tokenizer.batch_decode(output, skip_special_tokens=True), strict=True
        ):
            chain, marker, label = answer.rpartition(f" {scoring.marker} ")
            formed += bool(marker) and label in scoring.labels
            exact += chain == candidate.reasoning[dimension]
    assert formed >= 95
    assert exact >= 24
