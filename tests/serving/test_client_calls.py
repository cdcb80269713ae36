"""What the client refuses before it sends anything, how it splits, and what it says of a service that is not there."""

import asyncio
import os
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from zr_ray.errors import DeadlineError, RewardError
from zr_ray.records import RewardRequest
from zr_ray.rubric import DIMENSIONS
from zr_ray.serving import wire
from zr_ray.serving.call import parts
from zr_ray.serving.client import RewardClient
from zr_ray.serving.transport import check_target

NOBODY = "http://127.0.0.1:9/reward"
X = torch.rand(4, 3, 8, 8)
REFUSED = {
    "a text as prompts": ((X, "blue"), {}, "got the text 'blue'"),
    "bytes as prompts": ((X, b"blue"), {}, "got the text"),
    "a set of prompts": ((X, set("abcd")), {}, "got set"),
    "a prompt that is no text": ((X, ["a", "b", "c", 4]), {}, "prompt 3 is int"),
    "too few prompts": ((X, ["a"]), {}, "4 images and 1 prompts"),
    "one image": ((X[0], ["a"] * 3), {}, r"images\[None\]"),
    "a text as dimensions": ((X, list("abcd")), {"dimensions": "realism"}, r"write \['realism'\]"),
    "no dimension": ((X, list("abcd")), {"dimensions": []}, "different names, one at least"),
    "a scalar weight": ((X, list("abcd")), {"weights": 2.0}, "weights must be finite numbers of shape"),
    "weights to broadcast": ((X, list("abcd")), {"weights": torch.ones(4, 1)}, "weights must be finite numbers"),
    "weights of more images": ((X, list("abcd")), {"weights": torch.ones(9, 4)}, "weights must be finite numbers"),
    "weights that learn": ((X, list("abcd")), {"weights": torch.ones(4, requires_grad=True)}, "detach"),
    "negative risk": ((X, list("abcd")), {"risk": -1.0}, "risk must be a finite number"),
    "no risk": ((X, list("abcd")), {"risk": None}, "risk must be a finite number"),
    "complex pixels": ((X.to(torch.complex64), list("abcd")), {}, "plain tensor"),
}


@pytest.fixture(scope="module")
def client():
    with RewardClient(NOBODY, dimensions=DIMENSIONS, deadline_s=0.5) as made:
        yield made


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike_with_and_without_gradient(client, name):
    (images, prompts), options, message = REFUSED[name]
    calls = [client.reward]
    if images.is_floating_point():
        calls.append(lambda x, *rest, **more: client.reward(x.clone().requires_grad_(), *rest, **more))
    for call in calls:
        with pytest.raises(RewardError, match=message):
            call(images, prompts, **options)
    assert client.counters["requests"] == 0


@pytest.mark.parametrize(
    "target", ["127.0.0.1:8000/reward", "localhost:8000", "http://", "https:/host/x", " ", "http://h/?x=1"]
)
def test_an_address_without_scheme_is_refused(target):
    with pytest.raises(RewardError, match="target must be http://host:port/route, or the name") as raised:
        RewardClient(target)
    assert "\n" not in str(raised.value)
    assert check_target("HTTP://host/reward") and not check_target("reward-1128-abcd")


def test_split_by_bytes_as_well_as_items():
    images = np.zeros((8, 3, 64, 64), np.float32)  # 49,152 bytes each
    weights = np.arange(32.0).reshape(8, 4)
    request = RewardRequest(images, ("a" * 100,) * 8, DIMENSIONS, weights, 0.5, "")
    for most, limit, sizes in (
        (16, 10**7, [8]),
        (3, 10**7, [3, 3, 2]),
        (16, 160_000, [3, 3, 2]),
        (2, 160_000, [2] * 4),
    ):
        found = parts(request, most, limit)
        assert [len(part.prompts) for part in found] == sizes
        assert all(len(wire.request_safetensors(part)) <= limit for part in found)
        np.testing.assert_array_equal(np.concatenate([part.weights for part in found]), weights)
    with pytest.raises(RewardError, match="image 0 .* alone has"):
        parts(request, 16, 40_000)


def test_the_size_of_an_item_counts_every_character():
    prompts = ("\U0001f600" * 2000,) * 4
    request = RewardRequest(np.zeros((4, 3, 8, 8), np.uint8), prompts, DIMENSIONS, None, 0.0, "")
    assert all(len(wire.request_safetensors(part)) <= 60_000 for part in parts(request, 16, 60_000))


def test_a_service_that_is_down_is_named_within_the_deadline(capfd):
    failures = []
    threading.excepthook, before = failures.append, threading.excepthook
    try:
        started = time.monotonic()
        made = RewardClient(NOBODY, deadline_s=0.5)
        with pytest.raises(DeadlineError, match=r"127.0.0.1:9/reward did not answer within 0.5 s .*connection refused"):
            made.score(X, list("abcd"))
        made.close()
        assert time.monotonic() - started < 10 and made._line.loop.is_closed() and not made._line.thread.is_alive()
        with pytest.raises(RewardError, match="closed"):
            made.score(X, list("abcd"))
        with pytest.raises(DeadlineError, match="the name of the host is not known"):
            RewardClient("http://no-such-host.invalid/x", deadline_s=1).score(X, list("abcd"))
    finally:
        threading.excepthook = before
    assert not failures and "Event loop" not in capfd.readouterr().err


def test_a_forked_child_gets_a_connection_of_its_own(client):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            client.score(X, list("abcd"))
        except Exception as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "DeadlineError"  # it asked, and nobody is there; a hang would end in the test's time-out
    os.waitpid(child, 0)
    assert client._line.thread.is_alive()


def test_a_client_travels_by_pickle():
    with pickle.loads(pickle.dumps(RewardClient(NOBODY, "secret", dimensions=["realism"], deadline_s=3))) as made:
        assert made._dimensions == ("realism",) and made._deadline_s == 3


class _Restarting(BaseHTTPRequestHandler):
    """What a service says while it restarts, as Ray Serve's proxy says it, and then a refusal of its gateway."""

    said: list[int] = []

    def do_GET(self):
        self.said.append(404)
        text = self.path.startswith("/reward") and len(self.said) < 3
        body = b"Path '/reward/v1/judge' not found. Ping http://.../-/routes for available routes."
        body = body if text else b'{"error": {"status": "unknown_judge", "message": "judges are [student]"}}'
        self.send_response(404)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_proxy_without_routes_is_asked_again_but_an_unknown_judge_is_final():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Restarting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with RewardClient(f"http://127.0.0.1:{server.server_port}/reward", deadline_s=20) as made:
            with pytest.raises(RewardError, match="answered 404: .*unknown_judge"):
                asyncio.run(made.score_async(X, list("abcd")))
        assert len(_Restarting.said) == 3
    finally:
        server.shutdown()
