"""Bodies there and back; what is broken is one item's fault or one clear refusal; nothing unpickles."""

import base64
import io
import json
import pickle
import time
import tracemalloc
import zlib
from collections import Counter
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image

from tests.serving.mutations import cases
from zr_ray.records import ItemFault, JudgeIdentity, Limits, RewardReply, RewardRequest
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.serving import wire
from zr_ray.serving.bounded_json import bounded_json

LIMITS = Limits(items=4, pixels=10_000, request_pixels=12_000, prompt_chars=50, body_bytes=10_000_000)
ARRAY = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def encoded(array=ARRAY, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def read(content_type, body, gradient=False, **query):
    return wire.read_request(content_type, body, query, gradient, LIMITS, "id")


def body_of(*items, **more):
    return json.dumps(
        {"items": [{"image": base64.b64encode(i).decode(), "prompt": p} for i, p in items], **more}
    ).encode()


def test_json_decodes_each_image_on_its_own():
    files = [encoded()[:-200], encoded(), encoded(kind="WEBP", lossless=True), b"no image"]
    request = read(wire.JSON, body_of(*zip(files, "abcd", strict=True)))
    np.testing.assert_array_equal(request.images[1], ARRAY.transpose(2, 0, 1))
    assert [getattr(i, "status", "ok") for i in request.images] == [
        "undecodable",
        "ok",
        "too_large",
        "undecodable",
    ]  # the 3rd: budget
    assert request.prompts == tuple("abcd") and request.dimensions == DIMENSIONS and request.weights is None


def test_a_bomb_is_refused_by_its_header():
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000))
        + chunk(b"IEND", b"")
    )
    (fault,) = read("image/png", bomb, prompt="x").images
    assert fault.status == "too_large" and "bomb" in fault.reason


def test_raw_image_with_a_query():
    request = read(
        "image/jpeg",
        encoded(kind="JPEG"),
        gradient=True,
        prompt="a b",
        dimensions="realism,alignment",
        weights="1,-2",
        risk="0.5",
    )
    assert request.dimensions == ("realism", "alignment") and request.risk == 0.5 and request.prompts == ("a b",)
    np.testing.assert_array_equal(request.weights, [1, -2])
    assert read("image/png", encoded(), gradient=True, prompt="x").weights.tolist() == [0.25] * 4


def test_dimensions_of_items():
    tree = json.loads(body_of((encoded(), "a"), (encoded(), "b")))
    tree["items"][0]["dimensions"], tree["items"][1]["dimensions"] = ["realism"], ["beauty"]
    request = read(wire.JSON, json.dumps(tree).encode())
    assert request.dimensions == ("realism",) and request.prompts[0] == "a"
    assert request.prompts[1].status == "unknown_dimension"
    tree["items"][1]["dimensions"] = ["alignment"]
    assert read(wire.JSON, json.dumps(tree).encode()).dimensions == ("alignment", "realism")
    del tree["items"][1]["dimensions"]
    assert read(wire.JSON, json.dumps(tree).encode()).dimensions == DIMENSIONS
    for wrong in (["beauty"], ["realism"] * 2):
        with pytest.raises(wire.WireError, match="different names"):
            read(wire.JSON, body_of((encoded(), "a"), dimensions=wrong))


def test_safetensors_request_there_and_back():
    images = np.random.default_rng(1).random((2, 3, 8, 9)).astype(np.float32)
    for sent in (images, (images[0], images[1][:, :4])):
        request = RewardRequest(sent, ("a", "b"), ("realism",), np.array([[1.0], [2.0]]), 0.25, "id")
        got = read(wire.SAFETENSORS, wire.request_safetensors(request), gradient=True)
        assert got.prompts == ("a", "b") and got.dimensions == ("realism",) and got.risk == 0.25
        np.testing.assert_array_equal(got.weights, request.weights)
        for a, b in zip(got.images, sent, strict=True):
            np.testing.assert_array_equal(a, b)


HEADER = b'{"images":{"dtype":"F32","shape":[-1,3,8,8],"data_offsets":[0,768]}}'
BROKEN = {
    "pickle": (wire.SAFETENSORS, pickle.dumps({"images": 1}), 400),
    "pickle as json": (wire.JSON, pickle.dumps([1]), 400),
    "negative size": (wire.SAFETENSORS, len(HEADER).to_bytes(8, "little") + HEADER + bytes(768), 400),
    "huge header": (wire.SAFETENSORS, (2**62).to_bytes(8, "little") + b"{}", 400),
    "empty": (wire.SAFETENSORS, b"", 400),
    "deep": (wire.JSON, b"[" * 1_500, 400),
    "20 million empty lists": (wire.JSON, b'{"items": [' + b"[]," * 20_000_000 + b"[]]}", 422),
    "a key twice": (wire.JSON, b'{"items": [{"image": "", "prompt": "a", "prompt": "b"}]}', 422),
    "nan": (wire.JSON, b'{"items": [{"image": "", "prompt": "a"}], "risk": NaN}', 400),
    "a number for an image": (wire.JSON, b'{"items": [{"image": 7, "prompt": "a"}]}', 422),
    "a misspelled key": (wire.JSON, b'{"items": [{"image": "", "promt": "a"}]}', 422),
    "weights without a reward": (wire.JSON, b'{"items": [{"image": "", "prompt": "a"}], "weights": [1]}', 422),
    "a header of a million tensors": (
        wire.SAFETENSORS,
        (3_000_000).to_bytes(8, "little") + b"{" + b" " * 2_999_998 + b"}",
        422,
    ),
    "other metadata": (
        wire.SAFETENSORS,
        wire.pack({"images": np.zeros((1, 3, 8, 8))}, request={"prompts": ["a"]}, risk=1),
        422,
    ),
    "no items": (wire.JSON, b"{}", 422),
    "too many": (wire.JSON, json.dumps({"items": [{"image": "", "prompt": ""}] * 5}).encode(), 422),
    "unknown key": (wire.JSON, json.dumps({"items": [{"url": "http://127.0.0.1/"}]}).encode(), 422),
    "nan risk": (wire.JSON, b'{"items": [{"image": "", "prompt": "a"}], "risk": "x"}', 422),
    "zip": ("application/zip", b"PK\x03\x04", 415),
    "no metadata": (wire.SAFETENSORS, wire.pack({"images": np.zeros((1, 3, 8, 8), np.float32)}), 422),
    "other tensors": (wire.SAFETENSORS, wire.pack({"weights": np.ones(4)}, request={"prompts": ["a"]}), 422),
    "scalar": (wire.SAFETENSORS, wire.pack({"images": np.array(1.0)}, request={"prompts": ["a"]}), 422),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_bodies_are_refused(name):
    content_type, body, status = BROKEN[name]
    with pytest.raises(wire.WireError) as raised:
        read(content_type, body)
    assert raised.value.http_status == status and len(str(raised.value)) < 600


def test_reply_there_and_back():
    nan = np.nan
    reply = RewardReply(
        "id",
        JudgeIdentity("student", "a" * 64, "b" * 64, "c" * 16),
        ("realism",),
        ("ok", "bad_pixels"),
        ("", "nan"),
        PAPER.bins,
        q=np.array([[[1 / 9] * 9], [[nan] * 9]], np.float32),
        mu=np.array([[3.0], [nan]], np.float32),
        sigma=np.array([[1.3], [nan]], np.float32),
        entropy=np.array([[2.1], [nan]], np.float32),
        outside=np.array([[0.1], [nan]], np.float32),
        reward=np.array([1.5, nan]),
        gradients=(np.full((3, 2, 2), 0.75, np.float32), None),
        scale=np.array([2.0**-14, nan]),
    )
    again = wire.read_reply(wire.reply_safetensors(reply))
    for name, value in reply.__dict__.items():
        if name == "gradients":
            np.testing.assert_array_equal(again.gradients[0], value[0])
            assert again.gradients[1] is None
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(again, name), value)
        else:
            assert getattr(again, name) == value
    tree = json.loads(json.dumps(wire.reply_json(reply), allow_nan=False))
    assert tree["items"][1] == {"status": "bad_pixels", "reason": "nan", "scores": None}
    assert tree["items"][0]["scores"]["realism"]["mu"] == 3.0 and tree["items"][0]["gradient_scale"] == 2.0**-14
    slope = np.frombuffer(base64.b64decode(tree["items"][0]["gradient"]["base64"]), np.float32)
    assert (slope == 0.75).all() and tree["model_hash"] == "a" * 64


def test_faults_are_no_images():
    assert isinstance(read(wire.JSON, b'{"items": [{"image": "7", "prompt": "a"}]}').images[0], ItemFault)


def test_mutated_bodies_are_a_request_or_an_error_of_ours():
    """2,000 of them go to a running service in test_endurance."""
    counts = Counter()
    for path, query, content_type, body in cases(300):
        known = ("judge", *(wire.IMAGE_QUERY if content_type in wire.IMAGE_TYPES else ()))
        try:
            asked = wire.check_query(parse_qsl(query, keep_blank_values=True), known)
            request = wire.read_request(content_type, body, asked, path.endswith("grad"), Limits(), "x")
        except wire.WireError as error:
            assert error.http_status in (400, 422) and "\n" not in str(error)
            counts[error.http_status] += 1
            continue
        assert len(request.images) == len(request.prompts) >= 1
        counts[200] += 1
    assert min(counts[200], counts[400], counts[422]) > 30, counts


def test_json_is_bounded_before_it_is_parsed():
    body = b"[" + b"[]," * 20_000_000 + b"[]]"
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(wire.WireError, match="may hold 130000 values"):
        bounded_json(body, 130_000)
    spent, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6 and spent < 1.0


def test_a_query_is_used_or_refused():
    known = ("judge", *wire.IMAGE_QUERY)
    assert wire.check_query([("prompt", "a"), ("risk", "1")], known) == {"prompt": "a", "risk": "1"}
    with pytest.raises(wire.WireError, match="no key 'dimension' here; did you mean 'dimensions'?"):
        wire.check_query([("prompt", "a"), ("dimension", "alignment")], known)
    with pytest.raises(wire.WireError, match="prompt may be there once"):
        wire.check_query([("prompt", "a"), ("prompt", "b")], known)
    for wrong in ({"risk": "1_0"}, {"risk": "nan"}, {"risk": "1,2"}, {"weights": "1,,2"}, {"dimensions": ""}):
        with pytest.raises(wire.WireError):
            read("image/png", encoded(), gradient=True, prompt="a", **wrong)
    with pytest.raises(wire.WireError, match="score_and_grad"):
        read("image/png", encoded(), prompt="a", risk="1")


def test_formats_and_transparency_are_those_of_the_loader():
    clear = np.dstack([ARRAY[..., 0], ARRAY[..., 1], ARRAY[..., 2], np.zeros(ARRAY.shape[:2], np.uint8)])
    for kind in ("PNG", "BMP", "TIFF", "GIF", "WEBP", "AVIF"):
        assert not isinstance(read("image/png", encoded(kind=kind), prompt="a").images[0], ItemFault), kind
    (seen,) = read("image/png", encoded(clear), prompt="a").images
    assert (seen == 255).all()  # hidden colors are not shown to the judge
