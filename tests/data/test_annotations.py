"""The on-disk format: round trips, and one test per way a record can break it."""

import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zr_ray.data.annotations import check_images, load_image, read_annotations, write_annotations
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage


def picture(path, value=90, size=(6, 4)):
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)
    return path


def record(**changes) -> dict:
    raw = {"id": "a", "group": "g", "split": "train", "prompt": "a cat", "image": "a.png", "scores": {"alignment": 3.5}}
    return {name: value for name, value in (raw | changes).items() if value is not ...}


def written(folder, *records: dict | str):
    picture(folder / "a.png")
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def items(folder) -> list[AnnotatedImage]:
    one = AnnotatedImage(
        "a",
        "g",
        "train",
        "un chat é",
        picture(folder / "a.png"),
        {"alignment": 3.5, "realism": 1.0},
        "human",
        {"realism": 1.25},
        {"alignment": "a cat ok"},
    )
    two = AnnotatedImage(
        "b", "h", "test", "a dog", picture(folder / "b.png"), {"aesthetics": (1.0, 4.2, 5.0), "realism": 4.2}, "human"
    )
    return [one, two]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_round_trip_is_exact(tmp_path, format):
    before = items(tmp_path)
    file = write_annotations(tmp_path, before, format)
    assert list(read_annotations(tmp_path)) == before
    assert list(read_annotations(file)) == before
    assert list(read_annotations(tmp_path, split="test")) == before[1:]
    assert {p.name for p in tmp_path.iterdir()} == {file.name, "a.png", "b.png"}, "no temporary file is left"


def test_parquet_with_plain_columns_written_by_someone_else(tmp_path):
    picture(tmp_path / "a.png")
    columns = record(scores={"alignment": 3.5, "realism": None}, truth=None)
    pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "annotations.parquet")
    (item,) = read_annotations(tmp_path)
    assert item.scores == {"alignment": 3.5} and item.truth == {} and item.origin == "unknown"


def test_parquet_with_a_map_column(tmp_path):
    picture(tmp_path / "a.png")
    texts = [(name, pa.string()) for name in ("id", "group", "split", "prompt", "image")]
    schema = pa.schema([*texts, ("scores", pa.map_(pa.string(), pa.float64()))])
    pq.write_table(
        pa.Table.from_pylist([record(scores=[("alignment", 3.5)])], schema), tmp_path / "annotations.parquet"
    )
    assert next(read_annotations(tmp_path)).scores == {"alignment": 3.5}


def test_a_list_of_one_number_is_that_number(tmp_path):
    assert next(read_annotations(written(tmp_path, record(scores={"alignment": [3.5]})))).scores == {"alignment": 3.5}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record(prompt=...), ["missing prompt"]),
        (record(promt="x"), ["unknown field 'promt'"]),
        (record(id=""), ["non-empty string in 'id'"]),
        (record(group=7), ["non-empty string in 'group'", "7"]),
        (record(split="training"), ["split train, dev, test", "'training'"]),
        (record(image="b.png"), ["b.png", "there is none"]),
        (record(image="../a.png"), ["inside", "../a.png"]),
        (record(image="/etc/hostname"), ["inside", "/etc/hostname"]),
        (record(scores={}), ["at least one dimension"]),
        (record(scores=3.5), ["{dimension: value} in 'scores'"]),
        (record(scores={"beauty": 3.0}), ["unknown dimension 'beauty'", "plausibility"]),
        (record(scores={"realism": 5.5}), ["scores.realism", "[1, 5]", "5.5"]),
        (record(scores={"realism": True}), ["scores.realism", "True"]),
        (record(scores={"realism": float("nan")}), ["scores.realism", "nan"]),
        (record(scores={"realism": 3.2}), ["a bin of 1.0, 1.5", "3.2"]),
        (record(scores={"realism": [3.0, 4.0]}), ["one rubric score", "2 annotators"]),
        (record(split="test", scores={"realism": [3.0, 0.5]}), ["[1, 5]", "0.5"]),
        (record(split="test", scores={"realism": []}), ["empty list"]),
        (record(truth={"realism": 0}), ["truth.realism", "0"]),
        (record(reasoning={"realism": 3}), ["reasoning.realism"]),
        (record(reasoning={"color": "x"}), ["unknown dimension 'color' in 'reasoning'"]),
        ('{"id": "a",', ["one JSON object"]),
        ("[1]", ["JSON object", "list"]),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path, bad, words):
    folder = written(tmp_path, record(id="first"), "", bad)  # a blank line counts as a line and is skipped
    with pytest.raises(DataError) as error:
        list(read_annotations(folder))
    message = str(error.value)
    assert message.startswith(f"{folder / 'annotations.jsonl'}: line 3: "), message
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_duplicate_id_names_both_lines(tmp_path):
    with pytest.raises(DataError, match=r"line 3: wanted unique ids, id 'a' is already at line 1"):
        list(read_annotations(written(tmp_path, record(), record(id="b"), record())))


def test_two_prompts_in_one_group(tmp_path):
    with pytest.raises(
        DataError, match=r"line 2: wanted one prompt per group, group 'g' has 'a cat' at line 1 and 'a dog' here"
    ):
        list(read_annotations(written(tmp_path, record(), record(id="b", prompt="a dog"))))


def test_one_group_in_two_splits(tmp_path):
    with pytest.raises(DataError, match=r"line 2: wanted one split per group"):
        list(read_annotations(written(tmp_path, record(), record(id="b", split="test"))))


def test_records_outside_the_split_are_checked_too(tmp_path):
    with pytest.raises(DataError, match="line 2"):
        list(
            read_annotations(
                written(tmp_path, record(), record(id="b", group="h", split="dev", scores={"realism": 9})),
                split="train",
            )
        )


def test_empty_split_and_empty_file(tmp_path):
    folder = written(tmp_path, record())
    with pytest.raises(DataError, match=r"split 'test', got none \(records: train 1, dev 0, test 0\)"):
        list(read_annotations(folder, split="test"))
    with pytest.raises(DataError, match="wanted a split of train, dev, test, got 'val'"):
        list(read_annotations(folder, split="val"))
    (folder / "annotations.jsonl").write_text("")
    with pytest.raises(DataError, match="got none"):
        list(read_annotations(folder))


def test_folder_without_or_with_two_annotation_files(tmp_path):
    with pytest.raises(DataError, match="got neither"):
        list(read_annotations(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        list(read_annotations(tmp_path / "nowhere"))
    (tmp_path / "annotations.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="wanted a Parquet file"):
        list(read_annotations(tmp_path))
    with pytest.raises(DataError, match="already there"):
        write_annotations(tmp_path, items(tmp_path))
    (tmp_path / "annotations.jsonl").touch()
    with pytest.raises(DataError, match="got both"):
        list(read_annotations(tmp_path))


def test_bad_parquet_record_is_named(tmp_path):
    picture(tmp_path / "a.png")
    pq.write_table(
        pa.Table.from_pylist([record(), record(id="b", scores={"alignment": 7.0})]), tmp_path / "annotations.parquet"
    )
    with pytest.raises(DataError, match=r"annotations.parquet: line 2: scores.alignment"):
        list(read_annotations(tmp_path))


def test_a_failed_write_keeps_the_old_file(tmp_path):
    before = items(tmp_path)
    write_annotations(tmp_path, before)
    outside = AnnotatedImage("c", "i", "test", "x", tmp_path.parent / "c.png", {"realism": 2.0})
    with pytest.raises(DataError, match="item 'c': wanted an image inside"):
        write_annotations(tmp_path, [*before, outside])
    assert list(read_annotations(tmp_path)) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_reading_streams(tmp_path):
    stream = read_annotations(written(tmp_path, record(), "{broken"))
    assert next(stream).id == "a"
    with pytest.raises(DataError, match="line 2"):
        next(stream)


def test_images_are_decoded_with_their_limits(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "ok.png")
    assert np.array_equal(load_image(tmp_path / "ok.png"), image)
    assert load_image(tmp_path / "ok.png", max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(DataError, match="at most 34 pixels, got 7 x 5"):
        load_image(tmp_path / "ok.png", max_pixels=34)
    (tmp_path / "cut.png").write_bytes((tmp_path / "ok.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, wanted in (("cut", "a decodable image"), ("text", "an image in one of"), ("empty", "an image in one of")):
        with pytest.raises(DataError, match=rf"{name}.png: wanted {wanted}"):
            load_image(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="there is none"):
        load_image(tmp_path / "gone.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        load_image(tmp_path / "deep.png")


def test_a_decompression_bomb_is_refused_unread(tmp_path):
    small = picture(tmp_path / "small.png").read_bytes()
    for side, words in (
        (30_000, "decompression bomb"),
        (10_000, "got 10000 x 10000"),
    ):  # Pillow itself refuses one, warns at the other
        header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
        (tmp_path / "bomb.png").write_bytes(bomb)
        with pytest.raises(DataError, match=f"wanted at most 16000000 pixels, got .*{words.removeprefix('got ')}"):
            load_image(tmp_path / "bomb.png")


def test_image_checks_name_item_and_line(tmp_path):
    folder = written(tmp_path, record(), record(id="b", image="b.png"))
    (folder / "b.png").write_text("no image")
    found = list(read_annotations(folder))
    assert check_images(found[:1]) == 1
    with pytest.raises(DataError, match=r"item 'b': .*b.png"):
        check_images(found)
    with pytest.raises(DataError, match=r"line 2: .*b.png: wanted an image"):
        list(read_annotations(folder, decode_images=True))
