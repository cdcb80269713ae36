"""Of a large set a sample is decoded; the headers of the rest say what the decoder would have said of their size."""

import json

import numpy as np
import pytest
from PIL import Image

from zr_ray.data import run_data
from zr_ray.data.glance import glance, sample_to_decode
from zr_ray.data.images import decode
from zr_ray.data.run_data import load_run_data
from zr_ray.errors import DataError


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_a_header_tells_the_size_that_the_decoder_gives(tmp_path, orientation, kind):
    path, exif = tmp_path / f"a.{kind}", Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(path, exif=exif)
    assert glance(path)[:2] == decode(path, "a").pixels.shape[:2]


def test_a_sample_is_even_and_within_its_pixels():
    assert sample_to_decode([10] * 5, 50) == {0, 1, 2, 3, 4}
    assert sample_to_decode([10] * 10, 50) == {0, 2, 4, 6, 8}
    assert sample_to_decode([10] * 3, 1) == {0}


@pytest.fixture()
def folder(tmp_path):
    rng, lines = np.random.default_rng(0), []
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 8, 3), np.uint8)).save(tmp_path / f"{n}.png")
        split = "test" if n >= 8 else "train"
        scores = {"realism": [1.0 + n % 3] if split == "test" else 1.0 + n % 3}
        line = {"id": f"i{n}", "group": f"g{n // 4}", "split": split, "prompt": f"p{n // 4}", "image": f"{n}.png"}
        lines.append(line | {"scores": scores})
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_large_set_is_sampled_and_says_so(folder, monkeypatch):
    looked = []
    monkeypatch.setattr(run_data, "FEW", 10)
    monkeypatch.setattr(run_data, "DECODE_PIXELS", 16 * 8 * 4)
    plain = run_data._look
    monkeypatch.setattr(run_data, "_look", lambda path, where: looked.append(path.name) or plain(path, where))
    sizes = []
    data = load_run_data(folder, "test", lambda item, height, width: sizes.append((height, width)))
    assert looked == ["0.png", "3.png", "6.png", "9.png"] and sizes == [(16, 8)] * 12
    (line,) = [w for w in data.warnings if "too many to decode" in w]
    assert "12 are too many" in line and "sample of 4" in line
    again = load_run_data(folder, "test").digest
    assert again == data.digest
    Image.fromarray(np.zeros((16, 8, 3), np.uint8)).save(folder / "5.png")  # not one of the sample
    assert load_run_data(folder, "test").digest != data.digest


def test_copies_in_both_splits_are_found_without_decoding_them(folder, monkeypatch):
    monkeypatch.setattr(run_data, "FEW", 10)
    monkeypatch.setattr(run_data, "DECODE_PIXELS", 1)
    (folder / "11.png").write_bytes((folder / "1.png").read_bytes())
    assert any("both" in line or "train" in line for line in load_run_data(folder, "test").warnings)
    assert len(load_run_data(folder, "test").warnings) > 1


def test_a_broken_header_is_refused_with_its_line(folder, monkeypatch):
    monkeypatch.setattr(run_data, "FEW", 10)
    monkeypatch.setattr(run_data, "DECODE_PIXELS", 1)
    (folder / "5.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"line 6: .*5.png: wanted an image in one of the formats"):
        load_run_data(folder, "test")
