"""The head behind `make gdso`: starts beside other clusters, asks for its token, is found again, and leaves nothing
behind."""

import importlib.util
import os
import shlex
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def local_head(tmp_path, monkeypatch):
    """The script as a module, with a state of its own so that a developer's head stays untouched."""
    spec = importlib.util.spec_from_file_location("local_head", Path(__file__).parents[2] / "cluster" / "local_head.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    session = Path(tempfile.mkdtemp(prefix="zrt", dir="/tmp"))  # Unix sockets need a short path
    monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(module, "TEMPORARY", session)
    monkeypatch.setattr(module, "OBJECT_STORE_BYTES", 100_000_000)
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield module
    module.stop()
    shutil.rmtree(session)


def reply(address: str, token: str | None = None) -> int:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def exports(text: str) -> dict[str, str]:
    return dict(shlex.split(line)[1].split("=", 1) for line in text.splitlines())


def test_start_find_again_and_stop(local_head, capfd):
    assert local_head.status() == 1
    assert local_head.stop() == 0, "stopping nothing is fine"
    assert local_head.start() == 0
    settings = exports(capfd.readouterr().out)
    address, token_file = settings["RAY_ADDRESS"], Path(settings["RAY_AUTH_TOKEN_PATH"])
    assert address.startswith("http://127.0.0.1:") and settings["RAY_AUTH_MODE"] == "token"
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert (reply(address), reply(address, "0" * 64), reply(address, token_file.read_text())) == (401, 403, 200)

    assert local_head.start() == 0 and exports(capfd.readouterr().out) == settings, "the running head is used again"
    assert local_head.status() == 0

    head = psutil.Process(local_head._recorded()["pid"])
    family = [head, *head.children(recursive=True)]
    assert len(family) > 3 and os.getpid() not in [process.pid for process in family]
    assert local_head.stop() == 0
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert local_head.status() == 1


def test_a_reused_process_id_is_not_ours(local_head):
    """After a reboot the recorded pid may belong to anyone, here to this very test."""
    local_head.STATE.mkdir(parents=True)
    (local_head.STATE / "head.json").write_text(
        f'{{"pid": {os.getpid()}, "created": 1.0, "address": "http://127.0.0.1:9"}}'
    )
    assert local_head._recorded() is None
    assert local_head.stop() == 0


def test_a_taken_port_is_passed_over(local_head):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert local_head._free_port(port) != port


def test_no_port_is_one_that_workers_are_given(local_head):
    """Ray's default range for workers, 10002 to 19999, belongs to the workers of other heads."""
    assert local_head._free_port(20001) not in range(10002, 20000)
    assert local_head._free_port(10002) not in range(10002, 20000)


@pytest.mark.cluster
def test_heads_of_two_checkouts_side_by_side(local_head, tmp_path, monkeypatch, capfd):
    assert local_head.start() == 0
    first = exports(capfd.readouterr().out)["RAY_ADDRESS"]
    other = Path(tempfile.mkdtemp(prefix="zrt", dir="/tmp"))
    with monkeypatch.context() as second:
        second.setattr(local_head, "STATE", tmp_path / "other")
        second.setattr(local_head, "TEMPORARY", other)
        try:
            assert local_head.start() == 0
            assert exports(capfd.readouterr().out)["RAY_ADDRESS"] != first
            assert local_head.status() == 0
        finally:
            local_head.stop()
            shutil.rmtree(other)
    assert local_head.status() == 0
