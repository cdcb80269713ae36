"""Annotation files as people and repositories write them: other layouts, encodings, separators, broken images."""

import json

import numpy as np
import pytest
from PIL import Image

from zr_ray.data.adapters import agiqa3k, imagereward
from zr_ray.data.adapters.sources import csv_columns, csv_rows, json_records
from zr_ray.data.annotations import read_annotations
from zr_ray.data.preferences import read_preferences
from zr_ray.errors import ConfigError, DataError


def pictures(folder, *names):
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            Image.fromarray(np.full((3, 4, 3), 10 * value, np.uint8)).save(file, "png")
    return folder


RANKING = {
    "id": "005658-0040",
    "prompt": "cola made from roots",
    "generations": [f"part-005658/images/0040/{name}.webp" for name in "abcd"],
    "ranking": [2, 1, 5, 2],
}
"""In the layout of ImageReward's data/test.json."""


def test_imagereward_test_json_as_published(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([RANKING], indent=4))
    images = pictures(tmp_path / "test_images", *RANKING["generations"][:4])
    summary = imagereward.convert(tmp_path / "test.json", images, tmp_path / "out")
    found = [(one.winner.stem, one.loser.stem) for one in read_preferences(tmp_path / "out")]
    # 1 is best: b before a and d (a tie) before c
    assert found == [("b", "a"), ("a", "c"), ("b", "c"), ("b", "d"), ("d", "c")]
    one = next(read_preferences(tmp_path / "out"))
    assert (one.split, one.dimension, one.group, one.prompt) == (
        "test",
        "overall",
        "test-005658-0040",
        RANKING["prompt"],
    )
    assert summary.skipped == {"pair with equal ranks": 1} and summary.items == 0 and summary.preferences == 5


def test_imagereward_rankings_must_line_up(tmp_path):
    (tmp_path / "valid.json").write_text(json.dumps([RANKING | {"ranking": [1, 2]}]))
    images = pictures(tmp_path / "images", *RANKING["generations"])
    with pytest.raises(DataError, match=r"record 1\): wanted a list of 4 numbers in 'ranking', got \[1, 2\]"):
        imagereward.convert(tmp_path / "valid.json", images, tmp_path / "out")
    (tmp_path / "valid.json").write_text(json.dumps([RANKING]))
    imagereward.convert(tmp_path / "valid.json", images, tmp_path / "other")
    assert {one.split for one in read_preferences(tmp_path / "other")} == {"dev"}


def test_a_csv_with_one_opinion_score(tmp_path):
    (tmp_path / "mos.csv").write_text("name,prompt,mos\na.png,a fox,2.5\nb.png,a fox,5\n")
    images = pictures(tmp_path / "images", "a.png", "b.png")
    summary = agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "out")
    assert [i.scores for i in read_annotations(tmp_path / "out")] == [{"realism": 3.0}, {"realism": 5.0}]
    assert "became realism; --mos-to" in summary.notes[0]
    (tmp_path / "mos.csv").write_text("name,prompt,mos\na.png,a fox,0\nb.png,a fox,75\n")
    with pytest.raises(DataError, match=r"line 3: wanted a number in \[0, 5\] in 'mos', got '75'"):
        agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "hundred")
    options = {"mos_to": "aesthetics", "mos_range": (0, 100)}
    agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "scaled", **options)
    assert [i.scores for i in read_annotations(tmp_path / "scaled")] == [{"aesthetics": 1.0}, {"aesthetics": 4.0}]
    with pytest.raises(ConfigError, match="mos_to one of .* got 'beauty'"):
        agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "x", mos_to="beauty")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_of_every_spreadsheet(tmp_path, encoding, mark):
    file = tmp_path / "data.csv"
    lines = ["name|prompt|mos_quality|mos_align", 'a.png|"Ein Fuchs, weiß; schön"|2,5|5', "b.png|Füchse|0|1,25"]
    file.write_text("\r\n".join(line.replace("|", mark) for line in lines).replace("2,5", '"2,5"').replace(
        "1,25", '"1,25"'), encoding=encoding)  # fmt: skip
    images = pictures(tmp_path / "images", "a.png", "b.png")
    agiqa3k.convert(file, images, tmp_path / "out")
    a, b = read_annotations(tmp_path / "out")
    assert a.scores == {"realism": 3.0, "alignment": 5.0} and b.scores == {"realism": 1.0, "alignment": 2.0}
    assert a.prompt == "Ein Fuchs, weiß; schön" and csv_columns(file)[0] == "name"


def test_a_csv_of_another_encoding_or_header_is_named(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes("name,prompt\na.png,Füchse\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"line \d: wanted CSV in UTF-8 .*save the file again as UTF-8"):
        list(csv_rows(file, ("name", "prompt")))
    file.write_text("image;text\nx;y\n")
    with pytest.raises(DataError, match=r"wanted columns name, prompt, missing name, prompt \(got image, text\)"):
        list(csv_rows(file, ("name", "prompt")))


def test_keys_written_twice_are_refused_in_every_json(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "a"},\n {"prompt": "b", "rank": {"x": 1, "x": 2}}]')
    with pytest.raises(DataError, match=r"line 2 \(record 2\).*the key 'x' is written twice"):
        list(json_records(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('[{"prompt": "a"}]', encoding="utf-16")
    assert [row for _, row in json_records(tmp_path / "a.json")] == [{"prompt": "a"}]


def test_broken_images_of_a_published_set_are_counted_or_named(tmp_path):
    (tmp_path / "mos.csv").write_text("name,prompt,mos\na.png,a fox,1\nb.png,a fox,2\nc.png,a fox,3\n")
    images = pictures(tmp_path / "images", "a.png", "b.png", "c.png")
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"line 3: .*b.png: wanted a decodable image"):
        agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "out", decode_images=True)
    options = {"decode_images": True, "skip_broken": True}
    summary = agiqa3k.convert(tmp_path / "mos.csv", images, tmp_path / "rest", **options)
    assert [item.id for item in read_annotations(tmp_path / "rest", decode_images=True)] == ["a", "c"]
    assert summary.skipped == {"image cannot be decoded": 1} and "line 3" in summary.lines()[1]


def test_a_pair_of_the_same_picture_under_two_names_is_counted(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([RANKING | {"ranking": [1, 2, 3, 4]}]))
    images = pictures(tmp_path / "images", *RANKING["generations"])
    a, b, *_ = RANKING["generations"]
    (images / b).write_bytes((images / a).read_bytes())
    summary = imagereward.convert(tmp_path / "test.json", images, tmp_path / "out")
    assert summary.skipped == {"pair of the same picture under two names": 1} and summary.preferences == 5
