"""The doctor finds what is wrong in this very environment when it is made wrong, and says how to mend it."""

from __future__ import annotations

import socket
import stat

import pytest

from zr_ray.operate import doctor


def states(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_this_environment_is_fit():
    found = states(doctor.python_check() + doctor.version_checks() + doctor.gpu_checks())
    assert found["python"] == "ok" and found["engine"] == "ok" and found["ray"] == "ok" and found["torch"] == "ok"
    assert "wrong" not in found.values()


def test_no_compiler_no_ninja(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    checks = doctor.compiler_checks()
    assert states(checks) == {"g++": "wrong", "ninja": "wrong"}
    assert "build-essential" in checks[0].text and "pip install ninja" in checks[1].text


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "a service"})
        assert doctor.port_checks()[0].text == "a service: somebody listens"
    assert doctor.port_checks()[0].state == "ok"


def test_disks(tmp_path, monkeypatch):
    assert states(doctor.disk_checks(tmp_path / "new" / "runs"))["runs"] in ("ok", "note")
    monkeypatch.setattr(doctor, "RUNS_GIB", 10**9)
    short = doctor.disk_checks(tmp_path)[0]
    assert short.state == "note" and "are wanted" in short.text
    assert doctor.disk_checks(None)[0].state == "wrong"


def token(tmp_path, mode: str | None = None, permissions: int | None = None):
    path = tmp_path / "token"
    if permissions is not None:
        path.write_text("x")
        path.chmod(permissions)
    environment = {"RAY_AUTH_TOKEN_PATH": str(path)} | ({"RAY_AUTH_MODE": mode} if mode else {})
    return doctor.token_checks(environment)[0]


@pytest.mark.parametrize(
    ("mode", "permissions", "state", "said"),
    [
        ("token", None, "wrong", "is missing; openssl"),
        ("token", stat.S_IRUSR | stat.S_IRGRP, "wrong", "mode 440"),
        ("token", 0o600, "ok", "asked for"),
        ("disabled", None, "note", "runs code as you"),
        (None, None, "ok", "RAY_AUTH_MODE=token"),
    ],
)
def test_tokens(tmp_path, mode, permissions, state, said):
    check = token(tmp_path, mode, permissions)
    assert check.state == state and said in check.text


def test_the_report_and_its_exit_code(monkeypatch, capsys):
    skip = "versions,import,compiler,gpu,ports,disk,token"
    assert doctor.main(["--skip", skip]) == 0
    assert capsys.readouterr().out.endswith("fit\n")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    assert doctor.main(["--skip", skip]) == 1
    assert "zr_ray needs 3.11 or 3.12" in capsys.readouterr().out
