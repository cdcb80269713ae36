"""What a run refuses at its start and what it only says: ties, leaks by content, twins, foreign scales, image notes."""

import json

import numpy as np
import pytest
from PIL import Image

from zr_ray.data.findings import ENOUGH
from zr_ray.data.run_data import load_checked_split, load_run_data, require_pairs
from zr_ray.errors import DataError


@pytest.fixture()
def folder(tmp_path):
    """folder(*(group, split, level, scores)) -> a data set; equal levels are equal pixels, under names of their own."""

    def write(*records, saved="png", **changes):
        lines = []
        for n, (group, split, level, scores) in enumerate(records):
            pixels = np.random.default_rng(level).integers(0, 256, (6, 5, 3), np.uint8)
            kind = saved if isinstance(saved, str) else saved[n]
            Image.fromarray(pixels).save(tmp_path / f"{n}.{kind}")
            line = {"id": f"i{n}", "group": group, "split": split, "prompt": f"prompt of {group}"}
            lines.append(line | {"image": f"{n}.{kind}", "scores": {"realism": scores}} | changes)
        (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return tmp_path

    return write


GOOD = [("g", "train", 1, 2.0), ("g", "train", 2, 4.0), ("t", "test", 3, [1, 3]), ("t", "test", 4, [5, 5])]


def test_good_data_has_no_warnings(folder):
    data = load_run_data(folder(*GOOD), "test")
    require_pairs(data)
    assert [len(part) for part in (data.train, data.held_out, data.pairs)] == [2, 2, 1] and data.warnings == ()
    assert data.facts() == {
        "folder": str(data.folder),
        "train_items": 2,
        "pairs": 1,
        "held_out_items": 2,
        "warnings": [],
    }


def test_training_data_of_ties_only_is_refused_with_the_counts(folder):
    tied = [("g", "train", n, 3.0) for n in range(3)] + [("single", "train", 9, 5.0), ("t", "test", 7, 2)]
    data = load_run_data(folder(*tied), "test")
    with pytest.raises(DataError, match=r"got none: 4 images in 2 groups \(1 of one image\), 3 same-prompt pairs, all"):
        require_pairs(data)


@pytest.mark.parametrize("held_out", [[("t", "test", 3, 4)], [("t", "test", 3, [2, 4]), ("t", "test", 4, 3)]])
def test_held_out_data_without_untied_pairs_runs_and_is_said(folder, held_out):
    data = load_run_data(folder(*GOOD[:2], *held_out), "test")
    require_pairs(data)
    assert [line for line in data.warnings if "HPA is undefined and shown as `no pairs`" in line] == list(data.warnings)


def test_the_same_picture_in_both_splits_is_found_by_its_pixels(folder):
    same = [*GOOD[:2], ("t", "test", 2, [1, 3]), ("t", "test", 4, [5, 5])]
    (line,) = load_run_data(folder(*same, saved=("png", "png", "bmp", "png")), "test").warnings  # another format
    assert line.startswith("1 x held-out image that is also a training image") and "(first: i2 is i1)" in line


def test_a_prompt_in_both_splits_is_counted(folder):
    (line,) = load_run_data(folder(*GOOD, prompt="a fox"), "test").warnings
    assert line.startswith("1 x held-out prompt that is also a training prompt") and "(first: 'a fox')" in line


def test_the_same_picture_as_winner_and_loser_is_counted(folder):
    twins = [("g", "train", 1, 2.0), ("g", "train", 1, 4.0), ("g", "train", 1, 4.0), *GOOD[2:]]
    (line,) = load_run_data(folder(*twins), "test").warnings
    assert line.startswith("2 x pair of the same picture with different scores") and "(first: i0, i1)" in line


def test_scores_of_another_scale_are_said(folder):
    low = [(f"g{n // 2}", "train", n, 1.0 + n % 5 / 2) for n in range(ENOUGH)]
    middle = [(f"t{n // 2}", "test", 100 + n, 2.0 + n % 4 / 2) for n in range(ENOUGH)]
    train, held_out = load_run_data(folder(*low, *middle), "test").warnings
    assert train.startswith("no training score of realism is above 3, half of the scale 1..5")
    assert held_out.startswith("held-out scores of realism lie in 2..3.5 and use neither end of the scale 1..5")
    high = [*low[:-1], ("g0", "train", 999, 3.5)]
    assert [line[:20] for line in load_run_data(folder(*high, *middle), "test").warnings] == [held_out[:20]]
    assert load_run_data(folder(*low[2:], *middle[2:]), "test").warnings == ()  # too few to say


def test_what_the_decoder_did_is_counted(folder):
    data = folder(*GOOD)
    rgba = np.zeros((4, 4, 4), np.uint8)
    Image.fromarray(rgba).save(data / "0.png")
    Image.fromarray(rgba + np.uint8(1)).save(data / "2.png")
    (line,) = load_run_data(data, "test").warnings
    assert line == "2 x images: transparent pixels, composited on the background (first: i0)"
    items, (line,) = load_checked_split(data, "test")
    assert len(items) == 2 and line.startswith("1 x images: transparent") and line.endswith("(first: i2)")


def test_a_check_names_the_record(folder):
    seen = []

    def check(item, height, width):
        seen.append((item.id, height, width))
        return "cannot be asked" if item.id == "i2" else None

    with pytest.raises(DataError, match=r"annotations.jsonl: line 3: item 'i2': cannot be asked"):
        load_run_data(folder(*GOOD), "test", check)
    assert seen == [("i0", 6, 5), ("i1", 6, 5), ("i2", 6, 5)]


def test_a_broken_image_names_the_line(folder):
    made = folder(*GOOD)
    (made / "3.png").write_bytes(b"GIF89a")
    for load in (load_run_data, load_checked_split):
        with pytest.raises(DataError, match=r"line 4: .*3.png: wanted"):
            load(made, "test")


def test_an_empty_split_is_said(folder):
    with pytest.raises(DataError, match=r"wanted records of split 'dev', got none \(records: train 2, dev 0, test 2\)"):
        load_run_data(folder(*GOOD), "dev")
