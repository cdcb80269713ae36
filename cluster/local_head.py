"""The local Ray head of this checkout: `start` (if it does not answer yet), `stop`, `status`. What `make gdso` and
`make stop` call.

    eval "$(python cluster/local_head.py start)"     # exports RAY_ADDRESS and the token settings; messages go to stderr

Only the head recorded in .cache/ray_head is reused or stopped, so several checkouts and other people's clusters live
side by side. Ray's ports (not its dashboard, which is bound to loopback) listen on all interfaces, and whoever reaches
them may run code: the head therefore asks for a token, kept in .cache/ray_head/token with mode 0600.
RAY_AUTH_MODE=disabled switches that off.
Left out on purpose: worker nodes and accelerators of other machines; see the cluster YAML files for those.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]
STATE = CHECKOUT / ".cache" / "ray_head"
STARTING = Path("/tmp") / f"zr_ray-{os.getuid()}-starting"
"""Lock of this user's checkouts: a port is free until another head takes it, so heads start one after the other."""
RAY_WORKER_PORTS = range(10002, 20000)
"""Where the workers of a head with Ray's defaults listen, here or in another checkout; nothing of ours goes there."""
TEMPORARY = Path("/tmp") / f"zr_ray-{os.getuid()}-{hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]}"
"""Ray's session folder; short, because Unix socket paths end at 107 characters."""
OBJECT_STORE_BYTES = 1_000_000_000
"""Enough for the tiny runs (a 2 M-parameter judge and 64x64 images), modest on a small machine."""
START_DEADLINE_S = 180
"""Measured start on 2 cores: 8 s when idle, 90 s under a load of 24."""
STOP_DEADLINE_S = 45
"""A head with live actors drains for about 30 s."""


def start() -> int:
    """Print shell exports for the running head, starting it first if needed."""
    STATE.mkdir(parents=True, exist_ok=True)
    with open(STATE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        head = _running()
        if head is None:
            with open(STARTING, "w") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                head = _launch()
        else:
            _say(f"using the local Ray head of this checkout: {head['address']}")
    for name, value in _client_environment(head["address"]).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def stop() -> int:
    """End the head that `start` made, and nothing else."""
    head = _recorded()
    if head is None:
        _say("no local Ray head of this checkout is running")
        return 0
    process = psutil.Process(head["pid"])
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_DEADLINE_S)
    for leftover in alive:
        leftover.kill()
    psutil.wait_procs(alive, timeout=10)
    (STATE / "head.json").unlink(missing_ok=True)
    _say(
        f"stopped the local Ray head {head['address']}"
        + (f" ({len(alive)} of its processes had to be killed)" if alive else "")
    )
    return 0


def status() -> int:
    """Say whether the head answers; 0 if it does."""
    head = _running()
    _say(
        f"{head['address']} answers, pid {head['pid']}, log {STATE / 'head.log'}"
        if head
        else "no local Ray head of this checkout answers"
    )
    return 0 if head else 1


def _launch(attempts: int = 3) -> dict:
    bin_folder = Path(sys.executable).parent
    port, agent_port, client_port = _free_port(8265), _free_port(52365), _free_port(20001)
    address = f"http://127.0.0.1:{port}"
    environment = (
        os.environ
        | _client_environment(address)
        | {
            # the job's `python`, and ninja for DeepSpeed
            "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TORCH_EXTENSIONS_DIR": os.environ.get(
                "TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions")
            ),
        }
    )
    del environment["RAY_ADDRESS"]  # `ray start` would look for a cluster there
    command = [
        str(bin_folder / "ray"),
        "start",
        "--head",
        "--block",
        "--port=0",
        f"--ray-client-server-port={client_port}",
        "--min-worker-port=0",  # any free port: with a range, two heads would give out the same ones
        "--max-worker-port=0",
        f"--temp-dir={TEMPORARY}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={agent_port}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
    ]
    TEMPORARY.mkdir(mode=0o700, exist_ok=True)
    if TEMPORARY.stat().st_uid != os.getuid():
        raise SystemExit(f"{TEMPORARY} belongs to another user; remove it, Ray keeps its session there")
    _say(f"starting a local Ray head, dashboard {address} ...")
    log = STATE / "head.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    head = {"pid": process.pid, "created": psutil.Process(process.pid).create_time(), "address": address}
    (STATE / "head.json").write_text(json.dumps(head))
    deadline = time.monotonic() + START_DEADLINE_S
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            reason = (
                f"ended with code {process.returncode}"
                if process.poll() is not None
                else f"did not answer in {START_DEADLINE_S} s"
            )
            said = log.read_text()
            if attempts > 1 and "already occupied" in said:  # by a Ray that is not ours, since the port was looked at
                stop()
                return _launch(attempts - 1)
            _say("".join(said.splitlines(keepends=True)[-15:]))
            stop()
            raise SystemExit(f"the local Ray head {reason}; its log is {log}")
        time.sleep(0.3)
    _say(
        f"dashboard {address}"
        + (f" (token: cat {STATE / 'token'})" if _auth_mode() == "token" else "")
        + "; `make stop` ends it"
    )
    return head


def _client_environment(address: str) -> dict[str, str]:
    settings = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": _auth_mode()}
    return settings | {"RAY_AUTH_TOKEN_PATH": str(_token_file())} if _auth_mode() == "token" else settings


def _auth_mode() -> str:
    return os.environ.get("RAY_AUTH_MODE", "token")


def _token_file() -> Path:
    path = STATE / "token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path


def _recorded() -> dict | None:
    """The recorded head, if that very process (not another one with its pid) still lives."""
    try:
        head = json.loads((STATE / "head.json").read_text())
        return head if psutil.Process(head["pid"]).create_time() == head["created"] else None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def _running() -> dict | None:
    head = _recorded()
    if head is not None and not _answers(head["address"]):
        _say("the recorded local Ray head does not answer (or was started with another RAY_AUTH_MODE); stopping it")
        stop()
        return None
    return head


def _answers(address: str) -> bool:
    request = urllib.request.Request(f"{address}/api/jobs/")
    if _auth_mode() == "token":
        request.add_header("Authorization", f"Bearer {_token_file().read_text()}")
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).status == 200
    except (OSError, urllib.error.URLError):
        return False


def _free_port(preferred: int) -> int:
    for port in [*range(preferred, preferred + 50), *[0] * 20]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if (found := probe.getsockname()[1]) not in RAY_WORKER_PORTS:
                return found
    raise SystemExit(f"no free port at or above {preferred}, or none outside {RAY_WORKER_PORTS}; end other heads")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    verbs = {"start": start, "stop": stop, "status": status}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        raise SystemExit(f"usage: python cluster/local_head.py {'|'.join(verbs)}")
    raise SystemExit(verbs[sys.argv[1]]())
