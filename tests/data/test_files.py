"""JSON Lines as they come: keys twice, encodings, absurd numbers; and names that no file system holds."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from zr_ray.data.annotations import read_annotations
from zr_ray.data.files import is_file, json_lines
from zr_ray.errors import DataError

RECORD = {"id": "a", "group": "g", "split": "train", "prompt": "a fox", "image": "a.png", "scores": {"realism": 3}}


def written(folder, *records, encoding="utf-8"):
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "a.png")
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    (folder / "annotations.jsonl").write_text("\n".join(lines), encoding=encoding)
    return folder


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps(RECORD)[:-1] + ', "prompt": "a wolf"}', "the key 'prompt' is written twice"),
        (
            json.dumps(RECORD).replace('"realism": 3', '"realism": 3, "realism": 5'),
            "the key 'realism' is written twice",
        ),
        ('{"id": ' + "9" * 5000 + "}", "wanted one JSON object"),
        (json.dumps(RECORD | {"prompt": "a \ud83d fox"}), "valid Unicode in 'prompt', got .*half of a surrogate pair"),
        (json.dumps(RECORD | {"image": "x" * 300 + ".png"}), "wanted an image file at .*there is none"),
        (json.dumps(RECORD | {"image": "a\0b.png"}), "wanted an image file at .*there is none"),
        (json.dumps(RECORD | {"image": "\ud83d.png"}), "valid Unicode in 'image'"),
    ],
    ids=["key", "nested-key", "digits", "surrogate", "long-name", "nul", "surrogate-name"],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, words):
    with pytest.raises(DataError, match=rf"line 2: .*{words}") as caught:
        list(read_annotations(written(tmp_path, RECORD, line)))
    str(caught.value).encode()  # a terminal must be able to show it


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    folder = written(tmp_path, RECORD, RECORD | {"id": "ß"}, encoding=encoding)
    assert [item.id for item in read_annotations(folder)] == ["a", "ß"]
    assert [where.rpartition(": ")[2] for where, _ in json_lines(folder / "annotations.jsonl")] == ["line 1", "line 2"]


def test_damaged_utf16_is_refused_and_not_replaced(tmp_path):
    folder = written(tmp_path, RECORD, RECORD | {"id": "b"}, encoding="utf-16")
    file = folder / "annotations.jsonl"
    file.write_bytes(file.read_bytes().replace("b".encode("utf-16-le"), b"\x00\xd8"))  # half of a surrogate pair
    with pytest.raises(DataError, match=r"after line \d: wanted UTF-16, got: .*save the file again as UTF-8"):
        list(read_annotations(folder))


def test_a_name_that_another_system_wrote_is_answered_with_the_one_that_is_there(tmp_path):
    (tmp_path / "sub").mkdir()
    composed = unicodedata.normalize("NFC", "grün.png")
    for name in ("sub/B.PNG", f"sub/{unicodedata.normalize('NFD', composed)}"):
        Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / name)
    for name, there in (("sub\\\\B.PNG", "sub/B.PNG"), ("sub/b.png", "B.PNG"), (f"sub/{composed}", "gru")):
        with pytest.raises(DataError, match=rf"there is none, but '{there}.*is"):
            list(read_annotations(written(tmp_path, RECORD | {"image": name.replace("\\\\", "\\")})))


def test_is_file_of_names_no_file_system_holds(tmp_path):
    (tmp_path / "there").write_text("")
    assert is_file(tmp_path / "there")
    assert not any(is_file(tmp_path / name) for name in ("gone", "x" * 300, "a\0b", "y" * 5000))
