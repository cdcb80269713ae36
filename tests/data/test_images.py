"""One decoder for loader and service: what a judge sees of broken EXIF, transparency, animations and damaged files."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from zr_ray.data.images import FIRST_FRAME, FORMATS, TRANSPARENT, UNREADABLE_EXIF, decode, decode_image, load_image
from zr_ray.errors import ConfigError, DataError

GRADIENT = np.stack(np.broadcast_arrays(np.arange(24)[:, None] * 10, np.arange(16) * 15, 40), -1).astype(np.uint8)
"""[24, 16, 3]: every row and column has its own color, so that a wrong turn shows."""


def saved(image, format, **options) -> io.BytesIO:
    file = io.BytesIO()
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)  # saving marks the object
    image.save(file, format, **options)
    file.seek(0)
    return file


def exif_jpeg(*entries: bytes, count: int | None = None) -> io.BytesIO:
    """A JPEG of GRADIENT with a hand-made little-endian EXIF directory."""
    directory = struct.pack("<H", len(entries) if count is None else count) + b"".join(entries) + bytes(4)
    return saved(GRADIENT, "JPEG", quality=95, exif=b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory)


ORIENTATION_6 = struct.pack("<HHII", 0x0112, 3, 1, 6)
RATIONAL = struct.pack("<HHII", 0x0112, 5, 1, 26)
"""An orientation whose type says rational: its value lies outside of the directory."""
X_RESOLUTION = struct.pack("<HHII", 0x011A, 5, 1, 60_000)
"""A rational that lies behind the end of the file."""


def test_orientation_is_applied_whatever_else_is_broken_in_the_exif():
    upright = decode(exif_jpeg(struct.pack("<HHII", 0x0112, 3, 1, 1)), "x")
    assert upright.pixels.shape == (24, 16, 3) and upright.notes == ()
    for file in (exif_jpeg(ORIENTATION_6), exif_jpeg(ORIENTATION_6, X_RESOLUTION)):
        turned = decode(file, "x")
        assert np.array_equal(turned.pixels, np.rot90(upright.pixels, -1)) and turned.notes == ()


@pytest.mark.parametrize(
    "file",
    [exif_jpeg(RATIONAL), exif_jpeg(struct.pack("<HHII", 0x0112, 3, 1, 77)), exif_jpeg(ORIENTATION_6[:7], count=9)],
    ids=["rational", "out-of-range", "truncated"],
)
def test_an_unreadable_orientation_costs_the_turn_and_is_noted_not_the_image(file):
    found = decode(file, "x")
    assert found.pixels.shape == (24, 16, 3) and abs(found.pixels.astype(int) - GRADIENT).max() < 30
    assert found.notes == (UNREADABLE_EXIF,)


def test_orientation_0_means_unknown_and_is_upright():
    assert decode(exif_jpeg(struct.pack("<HHII", 0x0112, 3, 1, 0)), "x").notes == ()


def test_transparent_pixels_show_the_background_and_not_the_colors_under_them():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[:] = (255, 0, 0, 0)  # red, invisible
    rgba[0, 0] = (0, 0, 255, 255)
    rgba[0, 1] = (0, 0, 255, 128)
    wanted = np.full((2, 2, 3), 255, np.uint8)
    wanted[0] = (0, 0, 255), (127, 127, 255)
    for format in ("PNG", "WEBP", "TIFF"):
        found = decode(saved(rgba, format, **({"lossless": True} if format == "WEBP" else {})), "x")
        assert abs(found.pixels.astype(int) - wanted).max() <= 1 and found.notes == (TRANSPARENT,), format
    assert decode(saved(rgba, "PNG"), "x", background=(0, 0, 0)).pixels[1, 1].tolist() == [0, 0, 0]

    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    for format in ("PNG", "GIF"):
        found = decode(saved(palette, format, transparency=0), "x")
        assert found.pixels.tolist() == [[[255, 255, 255], [0, 255, 0]]] and found.notes == (TRANSPARENT,), format
    gray = saved(np.array([[7, 9]], np.uint8), "PNG", transparency=7)  # tRNS: one gray level is transparent
    assert decode(gray, "x").pixels.tolist() == [[[255] * 3, [9] * 3]]


def test_another_background_is_configured_for_the_whole_installation(monkeypatch):
    clear = saved(np.zeros((2, 2, 4), np.uint8), "PNG")
    monkeypatch.setenv("ZR_RAY_BACKGROUND", "10, 20,30")
    assert decode_image(clear, "x").tolist() == [[[10, 20, 30]] * 2] * 2
    for wrong in ("white", "1,2", "1,2,256", "1,2,-3", ""):
        monkeypatch.setenv("ZR_RAY_BACKGROUND", wrong)
        with pytest.raises(ConfigError, match=f"three numbers from 0 to 255, .*got {wrong!r}"):
            decode_image(clear, "x")


def test_an_opaque_alpha_channel_changes_and_notes_nothing():
    rgba = np.dstack([GRADIENT, np.full((24, 16), 255, np.uint8)])
    found = decode(saved(rgba, "PNG"), "x")
    assert np.array_equal(found.pixels, GRADIENT) and found.notes == ()


def test_the_first_frame_of_an_animation_is_used_and_said():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        found = decode(saved(frames[0], format, save_all=True, append_images=frames[1:]), "x")
        assert abs(found.pixels[4, 4].astype(int) - (255, 0, 0)).max() < 12, format
        assert found.notes == (FIRST_FRAME,), format


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read(format):
    assert abs(decode_image(saved(GRADIENT, format), "x").astype(int) - GRADIENT).mean() < 12


def test_a_stranger_is_named_with_the_list_of_formats(tmp_path):
    cases = {
        "heic": (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"Git LFS pointer.*git lfs pull"),
        "page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        "svg": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        "psd": (b"8BPS\0\1", "PSD"),
        "ppm": (b"P6 1 1 255 abc", "PNM"),
        "text": (b"hello", "it starts with b'hello'"),
        "empty": (b"", "an empty file"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (lambda n: load_image(tmp_path / n), lambda n: decode_image(io.BytesIO(cases[n][0]), "image")):
            with pytest.raises(DataError, match=f"formats PNG, JPEG, WEBP, AVIF, GIF, BMP, TIFF, got .*{words}"):
                read(name)
    for path in (tmp_path, tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DataError):
            load_image(path)


# ---- fuzz ----


def seeds() -> list[bytes]:
    """One file or more of every format, with what decoders trip over: EXIF, palettes, alpha, frames, compressions."""
    image, rgba = Image.fromarray(GRADIENT), Image.fromarray(np.dstack([GRADIENT, GRADIENT[..., 0]]))

    def frames() -> dict:
        return {"save_all": True, "append_images": [image.rotate(180)]}

    files = [saved(image, format) for format in FORMATS]
    files += [exif_jpeg(ORIENTATION_6, X_RESOLUTION), exif_jpeg(RATIONAL), saved(image.convert("CMYK"), "JPEG")]
    files += [saved(image, "JPEG", progressive=True), saved(image, "MPO", **frames()), saved(image.quantize(8), "BMP")]
    files += [saved(image, format, **frames()) for format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF")]
    files += [saved(rgba, format) for format in ("PNG", "WEBP", "TIFF", "AVIF")]
    files += [saved(image.quantize(8), "PNG", transparency=3), saved(image.convert("1"), "TIFF", compression="group4")]
    files += [saved(image, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    return [file.getvalue() for file in files]


def mutated(file: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, most of them in the first 200; sometimes cut off, doubled or with a piece repeated."""
    data = bytearray(file)
    for _ in range(rng.integers(1, 9)):
        at = int(rng.integers(0, min(len(data), 200) if rng.random() < 0.8 else len(data)))
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
    kind, at = rng.random(), int(rng.integers(1, len(data)))
    if kind < 0.15:
        return bytes(data[:at])
    if kind < 0.25:
        return bytes(data[:at] + data[at // 2 : at] + data[at:])
    return bytes(data)


def fuzz(count: int) -> tuple[int, int]:
    """(decoded, refused) of `count` mutated images; anything but a DataError fails the test."""
    rng, files, decoded = np.random.default_rng(count), seeds(), 0
    for n in range(count):
        data = mutated(files[n % len(files)], rng)
        try:
            pixels = decode(io.BytesIO(data), "image", max_pixels=250_000).pixels
        except DataError as error:
            assert "\n" not in str(error) and "BytesIO" not in str(error)
            continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.shape[0] * pixels.shape[1] <= 250_000
        decoded += 1
    return decoded, count - decoded


def test_mutated_images_give_pixels_or_a_data_error():
    decoded, refused = fuzz(150)
    assert decoded > 20 and refused > 20  # the mutations reach both sides


@pytest.mark.slow
def test_two_thousand_mutated_images():
    decoded, refused = fuzz(2000)
    assert decoded > 300 and refused > 300
