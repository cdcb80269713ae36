"""Scoring formats: round trip, and every way a judge folder can be wrong."""

import json

import pytest

from zr_ray.errors import JudgeError
from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.rubric import DIMENSIONS, FORMAT_FILE, PAPER, Rubric, ScoringFormat, label_token_ids


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
        ({"bins": [1, 2]}, "`questions` must be given with `bins` of your own"),
        ({"bins": [2, 1]}, "ascending order, got .*; change `dimensions` or `bins` in scoring_format.json"),
        ({"bins": 3}, "`bins` must be a list with entries, got 3"),
        ({"dimensions": ["realism", "layout"]}, "missing: layout"),
        ({"dimensions": ["realism"], "questions": {"realism": "{prompt}", "layout": "{prompt}"}}, "texts for layout"),
        (
            {"bins": list(range(10)), "questions": dict.fromkeys(DIMENSIONS, "{prompt}")},
            "`labels` must be given for more",
        ),
    ],
)
def test_wrong_formats_are_refused(tmp_path, change, message):
    (tmp_path / FORMAT_FILE).write_text(json.dumps(change))
    with pytest.raises(JudgeError, match=message):
        ScoringFormat.load(tmp_path)


def test_a_rubric_of_its_own_there_and_back(tmp_path):
    made = ScoringFormat(questions={"a b": "{prompt}?"}, dimensions=("a b",), bins=(0, 0.5, 3))
    made.save(tmp_path)
    again = ScoringFormat.load(tmp_path)
    assert again == made and again.rubric == Rubric(("a b",), (0.0, 0.5, 3.0)) and again.labels == ("1", "2", "3")
    assert again.system.endswith(
        "N one digit from 1 to 3, where 1 means rubric score 0.0, 2 means 0.5, and so on to 3 for 3.0."
    )


def test_the_papers_rubric_is_not_written_down(tmp_path):
    """The file is part of a judge's hash: shipped judges, and labels made with them, keep their names."""
    for folder in BUILTIN_JUDGES.values():
        ScoringFormat.load(folder).save(tmp_path)
        assert (tmp_path / FORMAT_FILE).read_bytes() == (folder / FORMAT_FILE).read_bytes()
        assert ScoringFormat.load(folder).rubric == PAPER


def test_a_subset_of_the_papers_dimensions_keeps_its_wording():
    made = ScoringFormat(dimensions=("realism", "alignment"))
    assert made.questions == {d: ScoringFormat().questions[d] for d in ("realism", "alignment")}


def test_nearest_bin_and_margin():
    rubric = Rubric(("a",), (0, 1, 3))
    assert [rubric.nearest_bin(s) for s in (-1, 0.4, 0.6, 2, 2.1, 9)] == [0, 0, 1, 1, 2, 2]
    assert PAPER.margin == 0.5 and rubric.margin == 0.375 and PAPER.score_range == 4


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
