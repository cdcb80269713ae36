"""The index of images: what it says is what the decoder says, it holds for the file that was read and for no other, and
a run's start opens no image that it knows."""

import json
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zr_ray.data import run_data
from zr_ray.data.annotations import read_annotations
from zr_ray.data.image_index import INDEX_FILE, ImageIndex, IndexedImage, content_hash, look_at
from zr_ray.data.images import FIRST_FRAME, TRANSPARENT, load_image
from zr_ray.data.run_data import load_checked_split, load_run_data
from zr_ray.errors import DataError


@pytest.fixture()
def folder(tmp_path):
    """Twelve images in three groups, the last group held out: one transparent, one turned, two formats."""
    rng, lines = np.random.default_rng(0), []
    (tmp_path / "images").mkdir()
    for n in range(12):
        pixels = rng.integers(0, 256, (16, 8, 4 if n == 5 else 3), np.uint8)
        name = f"images/{n}.{'png' if n % 2 else 'bmp'}"
        exif = Image.Exif()
        if n == 3:
            exif[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / name, **({"exif": exif} if n == 3 else {}))
        split = "test" if n >= 8 else "train"
        scores = {"realism": [1.0 + n % 3] if split == "test" else 1.0 + n % 3}
        line = {"id": f"i{n}", "group": f"g{n // 4}", "split": split, "prompt": f"p{n // 4}", "image": name}
        lines.append(line | {"scores": scores})
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def indexed(folder, leave_out=()):
    """Write the index of a set, as the job does without Ray; returns it."""
    index = ImageIndex(folder)
    names = [index.name(item.image) for item in read_annotations(folder)]
    index.update(look_at(folder, name) for name in names if name not in leave_out)
    index.save()
    return index


def unopenable(folder):
    """Put other bytes of the same length and time into every image: whoever opens one fails or sees other pixels."""
    for path in (folder / "images").iterdir():
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def few(monkeypatch, few=2, pixels=1):
    """Samples begin at `few` images and hold at most `pixels`."""
    monkeypatch.setattr(run_data, "FEW", few)
    monkeypatch.setattr(run_data, "DECODE_PIXELS", pixels)


def sizes_of(folder):
    sizes = {}
    data = load_run_data(folder, "test", lambda item, height, width: sizes.update({item.id: (height, width)}))
    return data, sizes


def test_a_row_says_what_the_decoder_says(folder):
    row = look_at(folder, "images/3.png")
    pixels = load_image(folder / "images/3.png")
    assert (row.height, row.width) == pixels.shape[:2] == (8, 16) and row.content_hash == content_hash(pixels)
    assert row.error is None and row.notes == () and row.file_bytes == (folder / "images/3.png").stat().st_size
    assert look_at(folder, "images/5.png").notes == (TRANSPARENT,)
    Image.fromarray(pixels).save(folder / "same.bmp")
    assert look_at(folder, "same.bmp").content_hash == row.content_hash
    Image.fromarray(pixels.reshape(16, 8, 3)).save(folder / "reshaped.bmp")
    assert look_at(folder, "reshaped.bmp").content_hash != row.content_hash


def test_what_cannot_be_used_is_a_row_with_the_reason(folder):
    (folder / "cut.png").write_bytes((folder / "images/1.png").read_bytes()[:80])
    row = look_at(folder, "cut.png")
    assert row.error.startswith("cut.png: wanted a decodable image") and row.file_bytes == 80
    gone = look_at(folder, "gone.png")
    assert gone.error == "gone.png: wanted a readable image file, got: No such file or directory; add the file"
    index = ImageIndex(folder)
    index.update([row, gone])
    assert list(index.rows) == ["cut.png"]  # a file that is not there has no time to compare


def test_rows_come_back_and_equal_rows_are_equal_bytes(folder):
    index = indexed(folder)
    index.update([replace(look_at(folder, "images/1.png"), notes=(TRANSPARENT, FIRST_FRAME))])
    index.update([IndexedImage("bad.png", 7, 8, error="bad.png: wanted better")])
    before = index.save().read_bytes()
    again = ImageIndex(folder)
    assert again.rows == index.rows and len(again.rows) == 13
    again.rows = dict(reversed(again.rows.items()))
    assert again.save().read_bytes() == before
    columns = pq.read_table(folder / INDEX_FILE).to_pydict()
    assert columns["image"][0] == "bad.png" and columns["height"][0] is None and columns["notes"][0] is None


def test_a_row_holds_for_the_file_that_was_read_only(folder):
    path = folder / "images/1.png"
    about = indexed(folder).about
    status = path.stat()
    assert about(path).image == "images/1.png"
    os.utime(path, ns=(0, status.st_mtime_ns + 1))
    assert about(path) is None
    os.utime(path, ns=(0, status.st_mtime_ns // 10**9 * 10**9))  # unpacked by tar, which keeps seconds
    assert about(path) is not None
    os.utime(path, ns=(0, status.st_mtime_ns // 10**9 * 10**9 + 10**9))
    assert about(path) is None
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(0, status.st_mtime_ns))
    assert about(path) is None
    path.unlink()
    assert about(path) is None and about(folder / "images/none.png") is None


def test_a_file_that_is_no_index_is_named(folder):
    pq.write_table(pa.table({"image": ["a"], "label": [1]}), folder / INDEX_FILE)
    with pytest.raises(DataError, match=r"image_index.parquet: wanted an index of images, got: its columns are"):
        load_run_data(folder, "test")
    (folder / INDEX_FILE).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"image_index.parquet: wanted an index.*; remove it"):
        ImageIndex(folder)


def test_a_start_with_the_index_says_the_same_and_opens_nothing(folder, monkeypatch):
    (folder / "images/9.png").write_bytes((folder / "images/2.bmp").read_bytes())  # also a training image
    plain, plain_sizes = sizes_of(folder)
    assert plain_sizes["i3"] == (8, 16) and len(plain.warnings) == 2
    indexed(folder)
    unopenable(folder)
    data, sizes = sizes_of(folder)
    assert (data, sizes) == (plain, plain_sizes)  # the digest, too: indexing a set changes no run
    assert load_checked_split(folder, "test")[1] == ()
    few(monkeypatch)  # and a large set is not sampled
    assert load_run_data(folder, "test").warnings == plain.warnings


def test_a_changed_image_is_seen(folder):
    indexed(folder)
    before = load_run_data(folder, "test")
    Image.fromarray(load_image(folder / "images/2.bmp")).save(folder / "images/8.bmp")
    data = load_run_data(folder, "test")
    assert data.digest != before.digest
    assert any(line.startswith("1 x held-out image that is also a training image") for line in data.warnings)


def test_an_image_that_was_found_bad_is_refused_with_its_line_and_unread(folder):
    (folder / "images/6.bmp").write_bytes(b"BM nothing")
    indexed(folder)
    unopenable(folder)
    with pytest.raises(DataError, match=r"annotations.jsonl: line 7: images/6.bmp: wanted"):
        load_run_data(folder, "test")


def test_what_the_index_lacks_is_decoded(folder):
    plain = load_run_data(folder, "test")
    indexed(folder, leave_out=("images/4.bmp", "images/10.bmp"))
    assert load_run_data(folder, "test") == plain
    (folder / "images/4.bmp").write_bytes(b"BM nothing")
    with pytest.raises(DataError, match=r"line 5: .*images/4.bmp: wanted"):
        load_run_data(folder, "test")


def test_a_sample_of_what_the_index_lacks_is_compared_with_what_it_has(folder, monkeypatch):
    """New images are too many to decode: their files' beginnings are compared with those in the index."""
    (folder / "images/8.bmp").write_bytes((folder / "images/2.bmp").read_bytes())
    new = tuple(f"images/{n}.{'png' if n % 2 else 'bmp'}" for n in range(8, 12))
    indexed(folder, leave_out=new)
    few(monkeypatch)
    data = load_run_data(folder, "test")
    (told,) = [line for line in data.warnings if "too many to decode" in line]
    assert told.startswith("images: 4 are too many to decode before a run, an even sample of 1 was decoded")
    assert f"python jobs/data/index.py {folder} decodes all of them once" in told
    assert any("(first: i8 is i2)" in line for line in data.warnings)
    indexed(folder)
    assert not any("too many" in line for line in load_run_data(folder, "test").warnings)


def test_rows_of_transparent_images_hold_on_white_only(folder, monkeypatch):
    index = indexed(folder)
    assert index.about(folder / "images/5.png") is not None
    white = load_run_data(folder, "test").digest
    monkeypatch.setenv("ZR_RAY_BACKGROUND", "0,0,0")
    assert ImageIndex(folder).about(folder / "images/5.png") is None
    assert ImageIndex(folder).about(folder / "images/7.png") is not None
    assert load_run_data(folder, "test").digest != white


def test_a_folder_by_another_name_has_the_same_index(folder, monkeypatch):
    indexed(folder)
    plain = load_run_data(folder, "test").digest
    unopenable(folder)
    monkeypatch.chdir(folder.parent)
    for name in (folder.name, f"./{folder.name}/../{folder.name}", folder / "annotations.jsonl"):
        assert load_run_data(name, "test").digest == plain
