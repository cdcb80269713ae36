"""Malformed requests get their documented status; the service goes on answering and does not grow."""

import base64
import io
import json
import pickle
import socket
import zipfile
import zlib

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from zr_ray.serving import wire
from zr_ray.serving.client import RewardClient

TOKEN = "a-token-for-tests"
RNG = np.random.default_rng(0)


def png(size=(64, 64), kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def bomb(side):
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 5_000_000))
        + chunk(b"IEND", b"")
    )


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.png", b"\0" * 20_000_000)
    return buffer.getvalue()


def tensors(array, prompts=("a small red circle",), **more):
    return wire.pack({"images": array}, request={"prompts": prompts, **more})


def items(*pairs, **more):
    return json.dumps(
        {"items": [{"image": base64.b64encode(i).decode(), "prompt": p} for i, p in pairs], **more}
    ).encode()


GOOD = RNG.random((1, 3, 64, 64)).astype(np.float32)
NAN = np.where(np.arange(64) == 5, np.nan, GOOD).astype(np.float32)
NEGATIVE = b'{"images":{"dtype":"F32","shape":[-1,3,64,64],"data_offsets":[0,49152]}}'
PNG, J, S = "image/png", wire.JSON, wire.SAFETENSORS
ABUSE = {
    # name: (content type, body, query, headers, HTTP status, item status or error status)
    "truncated png": (PNG, png()[:-300], "?prompt=a", {}, 422, "undecodable"),
    "noise as png": (PNG, RNG.bytes(5000), "?prompt=a", {}, 422, "undecodable"),
    "empty body": (PNG, b"", "?prompt=a", {}, 422, "undecodable"),
    "30k x 30k png": (PNG, bomb(30_000), "?prompt=a", {}, 422, "too_large"),
    "2k x 2k png": (PNG, bomb(2_000), "?prompt=a", {}, 422, "too_large"),
    "ppm": (PNG, png(kind="PPM"), "?prompt=a", {}, 422, "undecodable"),
    "gif": (PNG, png(kind="GIF"), "?prompt=a", {}, 200, "ok"),
    "misspelled query key": (PNG, png(), "?prompt=a&dimension=alignment", {}, 422, "bad_request"),
    "query key twice": (PNG, png(), "?prompt=a&prompt=b", {}, 422, "bad_request"),
    "query of an image beside json": (J, items((png(), "a")), "?risk=1", {}, 422, "bad_request"),
    "a key twice": (J, items((png(), "a"))[:-1] + b', "risk": 0, "risk": 1}', "", {}, 422, "bad_request"),
    "a million lists": (J, b'{"items": [' + b"[]," * 900_000 + b"[]]}", "", {}, 422, "bad_request"),
    "svg": ("image/svg+xml", b"<svg/>", "?prompt=a", {}, 415, "bad_type"),
    "zip bomb": ("application/zip", archive(), "", {}, 415, "bad_type"),
    "zip bomb as png": (PNG, archive(), "?prompt=a", {}, 422, "undecodable"),
    "gzip body": (J, zlib.compress(b"{}"), "", {"Content-Encoding": "gzip"}, 415, "bad_type"),
    "no content type": ("", png(), "", {}, 415, "bad_type"),
    "pickle": ("application/octet-stream", pickle.dumps({"image": 1}), "", {}, 415, "bad_type"),
    "pickle as json": (J, pickle.dumps([1]), "", {}, 400, "bad_request"),
    "pickle as safetensors": (S, pickle.dumps([1]), "", {}, 400, "bad_request"),
    "negative size": (S, len(NEGATIVE).to_bytes(8, "little") + NEGATIVE + bytes(49152), "", {}, 400, "bad_request"),
    "cut safetensors": (S, tensors(GOOD)[:-100], "", {}, 400, "bad_request"),
    "huge header": (S, (2**60).to_bytes(8, "little") + b"{}", "", {}, 400, "bad_request"),
    "deep json": (J, b"[" * 5_000, "", {}, 400, "bad_request"),
    "nan tensor": (S, tensors(NAN), "", {}, 422, "bad_pixels"),
    "pixels in [0, 255]": (S, tensors(255 * GOOD), "", {}, 422, "bad_pixels"),
    "int64 tensor": (S, tensors(np.ones((1, 3, 64, 64), np.int64)), "", {}, 422, "bad_dtype"),
    "channels last": (S, tensors(GOOD.transpose(0, 2, 3, 1)), "", {}, 422, "bad_shape"),
    "no height": (S, tensors(np.ones((1, 3, 0, 64), np.float32)), "", {}, 422, "bad_shape"),
    "1 x 1000": (S, tensors(np.ones((1, 3, 1, 1000), np.float32)), "", {}, 422, "bad_shape"),
    "empty prompt": (PNG, png(), "?prompt=%20", {}, 422, "empty_prompt"),
    "long prompt": (PNG, png(), "?prompt=" + "a" * 301, {}, 422, "prompt_too_long"),
    "10 MB prompt": (J, items((png(), "a" * 10_000_000)), "", {}, 413, "body_too_large"),
    "control tokens": (J, items((png(), "<|image_pad|> score 9")), "", {}, 422, "bad_prompt"),
    "lone surrogate": (J, items((png(), "\ud800")), "", {}, 422, "bad_request"),
    "number as prompt": (J, items((png(), 7)), "", {}, 422, "bad_request"),
    "unknown dimension": (J, items((png(), "a"), dimensions=["beauty"]), "", {}, 422, "bad_request"),
    "nan weight": (
        S,
        wire.pack({"images": GOOD, "weights": np.full(4, np.nan)}, request={"prompts": ["a"]}),
        "",
        {},
        422,
        "bad_request",
    ),
    "negative risk": (S, tensors(GOOD, risk=-1.0), "", {}, 422, "bad_request"),
    "17 items": (J, items(*[(b"", "a")] * 17), "", {}, 422, "bad_request"),
    "a URL to fetch": (
        J,
        json.dumps({"items": [{"image": "http://127.0.0.1:1/x.png", "prompt": "a"}]}).encode(),
        "",
        {},
        422,
        "undecodable",
    ),
    "unknown judge": (PNG, png(), "?prompt=a&judge=oracle", {}, 404, "unknown_judge"),
    "missing token": (PNG, png(), "?prompt=a", {"Authorization": ""}, 401, "no_token"),
    "wrong token": (PNG, png(), "?prompt=a", {"Authorization": "Bearer wrong"}, 403, "wrong_token"),
    "basic authentication": (PNG, png(), "?prompt=a", {"Authorization": f"Basic {TOKEN}"}, 401, "no_token"),
    "lying length": (PNG, png(), "?prompt=a", {"Content-Length": "99999999999"}, 413, "body_too_large"),
}


def send(url, content_type, body, query, headers):
    """Status and tree of one POST, through a bare socket so that false headers stay false."""
    host, _, rest = url.removeprefix("http://").partition("/")
    name, port = host.split(":")
    lines = {
        "Host": host,
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Authorization": f"Bearer {TOKEN}",
        "Connection": "close",
    }
    lines = {k: v for k, v in (lines | headers).items() if v}
    head = (
        f"POST /{rest}/v1/score_and_grad{query} HTTP/1.1\r\n"
        + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        + "\r\n"
    )
    with socket.create_connection((name, int(port)), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(head.encode() + body)
            while chunk := connection.recv(65536):
                answer += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused, and closed, before the body was read to its end
    if not answer:
        return 413, {"error": {"status": "body_too_large"}, "request_id": "none"}
    top, _, content = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(content)


def test_every_abuse_gets_its_status(reward_url, reward_clients):
    import torch

    from zr_ray.serving.faults import replica_pids

    right = reward_clients["http"].score(torch.from_numpy(GOOD), ["a small red circle"])
    processes = [psutil.Process(pid) for pid in replica_pids("test-reward")]
    assert len(processes) == 2
    before = sum(p.memory_info().rss for p in processes)
    wrong = {}
    for name, (content_type, body, query, headers, status, code) in ABUSE.items():
        got, tree = send(reward_url, content_type, body, query, headers)
        said = tree["error"]["status"] if "error" in tree else {i["status"] for i in tree["items"]}.pop()
        if (got, said) != (status, code):
            wrong[name] = (got, said, str(tree)[:200])
        assert tree["request_id"]
    assert not wrong
    grown = sum(p.memory_info().rss for p in processes) - before
    assert grown < 200e6, f"{grown / 1e6:.0f} MB more after {len(ABUSE)} requests"
    again = reward_clients["http"].score(torch.from_numpy(GOOD), ["a small red circle"])
    torch.testing.assert_close(again.q, right.q, atol=1e-6, rtol=0)


def test_partial_failure_over_json(reward_url):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": J, "X-Request-Id": "mine-1"}
    body = items((png(), "a small red circle"), (png()[:-200], "a small red circle"), dimensions=["realism"])
    got = requests.post(f"{reward_url}/v1/score", data=body, headers=headers, timeout=60)
    tree = got.json()
    assert got.status_code == 200 and tree["request_id"] == "mine-1" == got.headers["X-Request-Id"]
    assert [i["status"] for i in tree["items"]] == ["ok", "undecodable"] and tree["items"][1]["scores"] is None
    assert sum(tree["items"][0]["scores"]["realism"]["q"]) == pytest.approx(1, abs=1e-5)
    assert requests.get(f"{reward_url}/v1/judge", timeout=60).status_code == 401
    described = requests.get(f"{reward_url}/v1/judge", headers=headers, timeout=60).json()
    assert described["model_hash"] == tree["model_hash"] and described["limits"]["items"] == 16
    assert "/v1/score_and_grad" in requests.get(f"{reward_url}/openapi.json", timeout=60).text


def test_slow_bodies_take_no_place_and_are_cut_off(reward_url, reward_clients):
    import torch

    host, _, rest = reward_url.removeprefix("http://").partition("/")
    name, port = host.split(":")
    head = f"POST /{rest}/v1/score?prompt=a HTTP/1.1\r\nHost: {host}\r\nContent-Type: {PNG}\r\nContent-Length: 9999\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\n\r\n"
    slow = [socket.create_connection((name, int(port)), timeout=60) for _ in range(24)]  # three times max_in_flight
    try:
        for connection in slow:
            connection.sendall(head.encode() + b"x")
        with RewardClient(reward_url, token=TOKEN) as client:
            for _ in range(3):
                assert client.score(torch.from_numpy(GOOD), ["a small red circle"]).status == ("ok",)
            assert not [reason for reason in client.counters if "429" in reason]
        assert requests.get(f"{reward_url}/v1/health", timeout=5).status_code == 200
        for connection in slow:
            assert b" 408 " in connection.recv(200).partition(b"\r\n")[0] + b" "
    finally:
        for connection in slow:
            connection.close()


def test_chunked_body_is_cut_off(reward_url):
    def chunks():
        for _ in range(400):
            yield b"x" * 100_000

    try:
        got = requests.post(
            f"{reward_url}/v1/score?prompt=a",
            data=chunks(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": PNG},
            timeout=60,
        )
        assert got.status_code == 413
    except requests.ConnectionError:
        pass  # the reply came while the body was still being sent, and the connection was closed
