"""A service with the shipped limits under load that is meant to hurt: 2,000 mutated bodies, three bodies of 60 MB that
are 20 million empty lists, 64 callers that send a byte a second. Health answers throughout, memory comes back, others
are scored."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import requests
import torch

from tests.serving.mutations import cases
from zr_ray.config.serve import LimitsSection
from zr_ray.serving import wire
from zr_ray.serving.client import RewardClient

pytestmark = pytest.mark.slow
APP, TOKEN = "test-shipped-limits", "a-token-for-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
HEALTH_S = 5.0
"""Longest wait for health; it was 15 s before bodies were bounded. An idle machine answers in .02 s."""


@pytest.fixture(scope="module")
def url(serve_url, service_config):
    """The service with the limits that users have, in numbers and in bytes."""
    from ray import serve

    from zr_ray.serving.application import application
    from zr_ray.serving.launch import wait_until_running

    shipped = {"limits": LimitsSection().model_dump(), "http": {"max_in_flight": 64, "body_deadline_s": 10.0}}
    target = serve.RunTarget(application(service_config(**shipped)), APP, "/shipped")
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running(APP, 600)
    yield f"{serve_url}/shipped"
    serve.delete(APP)


@pytest.fixture(scope="module")
def gateway(url):
    """The gateway's process."""
    from zr_ray.serving.faults import replica_pids

    processes = [psutil.Process(pid) for pid in replica_pids(APP)]
    (found,) = [p for p in processes if ":gateway" in " ".join(p.cmdline()).lower()]
    return found


def private(process):
    """Bytes of memory that only this process has: pages of Ray's object store, through which large bodies come, are
    shared, bounded by the store and not given back by who has read them."""
    info = process.memory_info()
    return info.rss - info.shared


class Watched:
    """What was seen while a block ran."""

    def __init__(self) -> None:
        self.health_s: list[float] = []
        """Seconds of every answer of health."""
        self.other: list[str] = []
        """What health said that was no 200."""
        self.most_bytes = 0
        """Largest private memory of the gateway."""


@contextmanager
def watched(url, gateway):
    """Asks for health, and looks at the gateway's memory, five times a second while the block runs."""
    seen, done = Watched(), threading.Event()

    def watch():
        while not done.wait(0.2):
            started = time.monotonic()
            try:
                answer = requests.get(f"{url}/v1/health", timeout=60)
                if answer.status_code != 200:
                    seen.other.append(answer.text)
            except requests.RequestException as error:
                seen.other.append(repr(error))
            seen.health_s.append(time.monotonic() - started)
            seen.most_bytes = max(seen.most_bytes, private(gateway))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
    assert seen.health_s and not seen.other, seen.other
    assert max(seen.health_s) < HEALTH_S, f"health took {max(seen.health_s):.1f} s"


def scored(url):
    """mu of two images, asked for as any caller does."""
    with RewardClient(url, token=TOKEN) as client:
        got = client.score(IMAGES, ["a small red circle"] * 2)
        assert got.status == ("ok", "ok") and not [name for name in client.counters if "429" in name], client.counters
        return got.mu


def test_two_thousand_mutated_bodies(url, gateway):
    right, before, counts, wrong = scored(url), private(gateway), Counter(), []
    session = threading.local()

    def ask(case):
        path, query, content_type, body = case
        if not hasattr(session, "own"):
            session.own = requests.Session()
        answer = session.own.post(
            f"{url}{path}?{query}", data=body, headers=HEADERS | {"Content-Type": content_type}, timeout=120
        )
        counts[answer.status_code] += 1
        tree = answer.json()  # everything the service says has this form
        faults = [item["status"] for item in tree["items"]] if "items" in tree else [tree["error"]["status"]]
        lines = [item["reason"] for item in tree["items"]] if "items" in tree else [tree["error"]["message"]]
        ours = answer.status_code in (200, 400, 404, 413, 415, 422) and all(faults) and tree["request_id"]
        if not ours or any("\n" in line or "Traceback" in line or "BytesIO" in line for line in lines):
            wrong.append((answer.status_code, answer.text[:300], case[:3], body[:300]))

    with watched(url, gateway) as seen, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, cases(2000)))
    print(
        dict(counts),
        f"health at most {max(seen.health_s):.2f} s, gateway {before / 1e6:.0f} MB before, at most"
        f" {seen.most_bytes / 1e6:.0f} MB",
    )
    assert not wrong, (len(wrong), wrong[:5])
    assert sum(counts.values()) == 2000 and counts[200] > 100 and counts[422] > 200 and counts[400] > 100, counts
    assert seen.most_bytes - before < 300e6
    assert gateway.is_running()
    torch.testing.assert_close(scored(url), right, atol=1e-6, rtol=0)


def test_three_bodies_of_twenty_million_lists(url, gateway):
    body = b"[" + b"[]," * 20_000_000 + b"[]]"
    right, before = scored(url), private(gateway)

    def ask(_):
        return requests.post(f"{url}/v1/score", data=body, headers=HEADERS | {"Content-Type": wire.JSON}, timeout=120)

    with watched(url, gateway) as seen, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, range(3)))
        end = time.monotonic() + 20
        while (left := private(gateway) - before) > 100e6 and time.monotonic() < end:
            time.sleep(0.2)
    print(
        f"health at most {max(seen.health_s):.2f} s, gateway {before / 1e6:.0f} MB before, at most"
        f" {seen.most_bytes / 1e6:.0f} MB, {left / 1e6:.0f} MB more at the end"
    )
    assert [a.status_code for a in answers] == [422] * 3 and "may hold 135400 values" in answers[0].text, answers[
        0
    ].text
    assert seen.most_bytes - before < 700e6  # three bodies, in pieces and whole; they are 5 GB once parsed
    assert left < 100e6
    torch.testing.assert_close(scored(url), right, atol=1e-6, rtol=0)


def test_sixty_four_callers_that_send_a_byte_a_second(url, gateway):
    """As many as the gateway works on at a time, for longer than a body may take."""
    host, _, rest = url.removeprefix("http://").partition("/")
    name, port = host.split(":")
    head = f"POST /{rest}/v1/score?prompt=a HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: 9999\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    slow = [socket.create_connection((name, int(port)), timeout=60) for _ in range(64)]
    done = threading.Event()

    def drip():
        while not done.wait(1.0):
            for connection in slow:
                try:
                    connection.sendall(b"x")
                except OSError:
                    pass  # cut off by now

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        for connection in slow:
            connection.sendall(head.encode())
        started, calls = time.monotonic(), 0
        with watched(url, gateway):
            while time.monotonic() - started < 12:
                scored(url)
                calls += 1
        said = [connection.recv(200).partition(b"\r\n")[0] for connection in slow]
        assert calls >= 3 and all(b" 408 " in line + b" " for line in said), (calls, Counter(said))
    finally:
        done.set()
        dripping.join()
        for connection in slow:
            connection.close()
