"""Pushing a folder to a hub: what is refused, what a dry run says, what a hub of our own on loopback is asked."""

import http.server
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("push_to_hub", ROOT / "jobs" / "push_to_hub.py")
job = importlib.util.module_from_spec(spec)
spec.loader.exec_module(job)


@pytest.fixture()
def folder(tmp_path):
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 2048)
    (folder / "README.md").write_text("# card")
    return folder


@pytest.fixture()
def no_network(monkeypatch):
    """Whatever opens a connection fails the test."""

    def refuse(*_, **__):
        raise AssertionError("somebody was contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_dry_run_lists_the_files_and_contacts_nobody(folder, no_network, capsys):
    assert job.main(["--folder", str(folder), "--repository", "me/judge", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[-1] for line in said.splitlines()[:3]] == ["README.md", "config.json", "model.safetensors"]
    assert "3 files would go to https://huggingface.co/me/judge (private if it has to be made)" in said


@pytest.mark.parametrize("name", ["optimizer.pt", ".env", "sub/.git/config"])
def test_what_should_not_be_published_is_refused(folder, no_network, capsys, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    assert job.main(["--folder", str(folder), "--repository", "me/judge", "--dry-run"]) == 1
    assert f"not published: {name}; move them away" in capsys.readouterr().err


def test_a_link_out_of_the_folder_is_refused(folder, no_network, capsys):
    (folder / "notes.txt").symlink_to("/etc/hostname")
    assert job.main(["--folder", str(folder), "--repository", "me/judge", "--dry-run"]) == 1
    assert "not published: notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("repository", ["judge", "me/judge/more", "me/ju dge"])
def test_a_name_that_no_hub_takes(folder, no_network, capsys, repository):
    assert job.main(["--folder", str(folder), "--repository", repository, "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_that_is_no_model(tmp_path, no_network, capsys):
    assert job.main(["--folder", str(tmp_path), "--repository", "me/judge", "--dry-run"]) == 1
    assert "must hold config.json or model_index.json" in capsys.readouterr().err


def test_a_hub_that_refuses_is_one_line(folder):
    """In a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test", "NO_PROXY": "*"}
    command = [sys.executable, str(ROOT / "jobs" / "push_to_hub.py"), "--folder", str(folder), "--repository", "me/j"]
    done = subprocess.run(command, env=os.environ | hub, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 1 and "error: the hub did not take me/j: " in done.stderr, done.stdout + done.stderr
    assert len(asked) == 1 and asked[0][0] == "/api/repos/create"
    assert asked[0][1]["name"] == "j" and asked[0][1]["visibility"] == "private"
