"""Scoring formats: round trip, and every way a judge folder can be wrong."""

import json

import pytest

from zr_ray.errors import JudgeError
from zr_ray.rubric import DIMENSIONS, FORMAT_FILE, ScoringFormat, label_token_ids


def test_round_trip(tmp_path):
    made = ScoringFormat(marker="score", system="", questions={d: f"{d} : {{prompt}}" for d in DIMENSIONS})
    made.save(tmp_path)
    assert ScoringFormat.load(tmp_path) == made


def test_folder_without_a_format_gets_the_default(tmp_path):
    assert ScoringFormat.load(tmp_path) == ScoringFormat()


def test_prompt_with_braces_is_kept_as_it_is():
    text = ScoringFormat().messages("a {weird} prompt {prompt}", "realism")[-1]["content"][1]["text"]
    assert "a {weird} prompt {prompt}" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["1", "2"]}, "labels must be 9"),
        ({"labels": ["1"] * 9}, "labels must differ"),
        ({"questions": {"realism": "{prompt}"}}, "missing: alignment, aesthetics, plausibility"),
        ({"marked": "x"}, r"unknown fields \['marked'\]"),
    ],
)
def test_wrong_formats_are_refused(tmp_path, change, message):
    (tmp_path / FORMAT_FILE).write_text(json.dumps(change))
    with pytest.raises(JudgeError, match=message):
        ScoringFormat.load(tmp_path)


def test_broken_json_is_refused(tmp_path):
    (tmp_path / FORMAT_FILE).write_text("{")
    with pytest.raises(JudgeError, match="is not JSON"):
        ScoringFormat.load(tmp_path)


class Tokenizer:
    """Three methods of a tokenizer: one id per character."""

    unk_token_id = 0

    def encode(self, text, add_special_tokens):
        return [0 if c == "?" else 1 if c in "ab" else ord(c) for c in text]

    def convert_ids_to_tokens(self, ids):
        return [chr(i) for i in ids]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("1", "4.5"), "'4.5' must be exactly one token"),
        (("1", "?"), "unknown to this tokenizer"),
        (("a", "b"), "share a token"),
    ],
)
def test_labels_that_do_not_fit_the_tokenizer(labels, message):
    with pytest.raises(JudgeError, match=message):
        label_token_ids(Tokenizer(), labels)


def test_labels_that_fit():
    assert label_token_ids(Tokenizer(), ("1", "9")) == (49, 57)
