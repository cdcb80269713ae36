"""Images that travel as their files: the same pixels to the bit, decoded once in a process, within a bound."""

import pickle

import numpy as np
import pytest
from PIL import Image

from zr_ray.data import encoded
from zr_ray.data.encoded import KeptPixels, encoded_image, pixels, size
from zr_ray.data.images import FORMATS, load_image
from zr_ray.errors import DataError

NOISE = np.random.default_rng(1).integers(0, 256, (24, 16, 3), np.uint8)


@pytest.fixture()
def kept(monkeypatch):
    """What this process keeps, empty, with room for two images of NOISE's size."""
    made = KeptPixels(2 * NOISE.nbytes)
    monkeypatch.setattr(encoded, "_KEPT", made)
    return made


@pytest.fixture()
def decoded(monkeypatch):
    """Names of the images that are decoded from here on."""
    names, plain = [], encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda file, name, *a, **k: names.append(name) or plain(file, name, *a, **k))
    return names


def arrived(image):
    """An image on the other side of a process boundary."""
    return pickle.loads(pickle.dumps(image))


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_those_of_the_loader(tmp_path, kept, format):
    Image.fromarray(NOISE).save(tmp_path / "a", format)
    image = arrived(encoded_image(tmp_path / "a"))
    assert np.array_equal(pixels(image), load_image(tmp_path / "a")) and size(image) == (24, 16)
    assert len(pickle.dumps(image)) < (tmp_path / "a").stat().st_size + 500


def turned(path, format):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(path, format, exif=exif)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_image_has_the_size_of_its_pixels(tmp_path, kept, format):
    turned(tmp_path / "a", format)
    image = arrived(encoded_image(tmp_path / "a"))
    assert size(image) == pixels(image).shape[:2] == load_image(tmp_path / "a").shape[:2] == (16, 24)
    assert np.array_equal(pixels(image), load_image(tmp_path / "a"))


def test_transparent_pixels_lie_on_the_background_of_who_read_the_file(tmp_path, kept, monkeypatch):
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    white = arrived(encoded_image(tmp_path / "a.png"))
    monkeypatch.setenv("ZR_RAY_BACKGROUND", "10,20,30")
    other = encoded_image(tmp_path / "a.png")
    assert pixels(white)[0, 0].tolist() == [255, 255, 255] and pixels(other)[0, 0].tolist() == [10, 20, 30]


def test_a_process_decodes_an_image_once(tmp_path, kept, decoded):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    first, again = encoded_image(tmp_path / "a.png"), arrived(encoded_image(tmp_path / "a.png"))
    for image in (first, again, arrived(first)):
        assert size(image) == (24, 16) and np.array_equal(pixels(image), NOISE)
    assert decoded == [str(tmp_path / "a.png")]
    with pytest.raises(ValueError, match="read-only"):
        pixels(first)[0, 0] = 0


def test_what_is_kept_is_bounded_and_the_least_used_goes(tmp_path, kept, decoded):
    images = []
    for n in range(3):
        Image.fromarray(NOISE + np.uint8(n)).save(tmp_path / f"{n}.png")
        images.append(encoded_image(tmp_path / f"{n}.png"))
    for n in (0, 1, 0, 2):  # 1 goes when 2 comes
        pixels(images[n])
        assert kept.held <= 2 * NOISE.nbytes
    assert [size(image) for image in images] == [(24, 16)] * 3
    assert [name[-5] for name in decoded] == ["0", "1", "2"]  # sizes stay
    pixels(images[0])
    pixels(images[1])
    assert [name[-5] for name in decoded] == ["0", "1", "2", "1"] and kept.held == 2 * NOISE.nbytes


def test_an_image_larger_than_the_bound_is_not_kept(tmp_path, monkeypatch):
    small = KeptPixels(NOISE.nbytes - 1)
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    assert np.array_equal(small.pixels(encoded_image(tmp_path / "a.png")), NOISE) and small.held == 0


def test_arrays_pass_through(kept):
    assert pixels(NOISE) is NOISE and size(NOISE) == (24, 16)


def test_what_cannot_be_read_or_decoded_names_the_file(tmp_path, kept):
    with pytest.raises(DataError, match=r"gone.png: wanted an image file, there is none"):
        encoded_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="wanted a readable image file"):
        encoded_image(tmp_path)
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    broken = arrived(encoded_image(tmp_path / "a.png"))
    for use in (pixels, size):
        with pytest.raises(DataError, match=r"a.png: wanted a decodable image"):
            use(broken)
    assert "content" not in repr(broken)
