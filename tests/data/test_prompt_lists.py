"""Prompt lists: every public form is read as it comes, splits are disjoint, refusals name what is missing."""

from pathlib import Path

import pytest

from zr_ray.data.prompt_lists import read_prompts, split_prompts
from zr_ray.errors import DataError

SAMPLES = Path(__file__).parent / "samples" / "prompts"


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("partiprompts.tsv", 3, "bond"),
        ("geneval_metadata.jsonl", 3, "a photo of a bench"),
        ("t2i_compbench_color_val.txt", 3, None),
        ("dpg_bench.csv", 3, None),
        ("dsg1k_annotations.csv", 1, "A rubix cube with ten squares of purple"),
        ("gecko.csv", 3, "Ulvetanna Peak, Queen Maud Land, Antarctica during sunrise"),
        ("flow_grpo_ocr_test.txt", 3, None),
    ],
)
def test_public_sets_are_read_as_they_come(name, count, first):
    prompts = read_prompts(SAMPLES / name)
    assert len(prompts) == count and all(len(prompt) > 3 and "," != prompt for prompt in prompts)
    assert first is None or prompts[0] == first


def test_repeats_and_blanks_go_and_the_order_stays(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("b\n\n a  cat \nb\na cat\n")
    assert read_prompts(path) == ["b", "a cat"]


def test_a_column_may_be_named(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text('prompt,other\n"x, y",z\n')
    assert read_prompts(path) == ["x, y"] and read_prompts(path, "other") == ["z"]
    with pytest.raises(DataError, match="must have a column wish, got prompt, other"):
        read_prompts(path, "wish")


def test_refusals(tmp_path):
    for name, text, said in (
        ("a.jsonl", "{\n", "a.jsonl:1 is not JSON"),
        ("b.jsonl", "[1]\n", "must be an object, got list"),
        ("c.md", "x", "must end in .txt"),
        ("d.txt", "\n", "holds no prompt"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=said):
            read_prompts(tmp_path / name)
    with pytest.raises(DataError, match="cannot read prompts"):
        read_prompts(tmp_path / "missing.txt")


def test_splits_are_disjoint_spread_and_whole():
    prompts = [str(i) for i in range(100)]
    training, held_out = split_prompts(prompts, 10)
    assert sorted(training + held_out) == sorted(prompts) and held_out == [str(i) for i in range(0, 100, 10)]
    with pytest.raises(DataError, match="at least 102"):
        split_prompts(prompts, 51)
