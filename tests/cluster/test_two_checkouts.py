"""Two checkouts on one machine as their users run them: `make gdso` in one, `make test` in the other at the same time;
then Ctrl-C, which leaves a checkpoint, and `DETACH=1`, which leaves the job."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs.test_gdso_job import SMALL

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = shutil.ignore_patterns(".git", ".venv", ".cache", ".*_cache", "__pycache__", "runs", "build", "*.egg-info")
LONG = ["gdso.steps=500", "evaluation.before=false", "evaluation.every_steps=0", "checkpoint.every_steps=500"]
LONG += ["rollout.workers=1", "data.world.generated_train_groups=0", "data.world.generated_test_groups=0"]


class Checkout:
    """A copy of this checkout, with this environment's packages as its .venv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=NOT_OURS)
        (folder / ".venv").symlink_to(sys.prefix)
        self.session = f"/tmp/zr_ray-{os.getuid()}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
        """Where cluster/local_head.py keeps Ray's session of this checkout."""
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
        left_out = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        own = {"PYTHONPATH": str(folder), "TORCH_EXTENSIONS_DIR": extensions}
        self._environment = {k: v for k, v in os.environ.items() if k not in left_out and "PYTEST" not in k} | own

    def make(self, log: Path, target: str, arguments: list[str], **variables) -> subprocess.Popen:
        """`make target` as a shell starts it: a process group that a terminal's Ctrl-C reaches as a whole."""
        stamp = ".venv/.installed-cpu"  # what is installed is not asked about here
        command = ["make", "-o", stamp, target, f"ARGS={shlex.join(arguments)}"]
        command += [f"{name}={value}" for name, value in variables.items()]
        with open(log, "w") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # a test run in the background of a shell ignores the signal, and its children would
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def head(self) -> list[psutil.Process]:
        """The processes of its Ray head, jobs included."""
        named = [p for p in psutil.process_iter() if re.search(f"{self.folder}/|{self.session}", _command(p))]
        family = {child for process in named for child in _family(process)}
        return [p for p in family if p.pid not in (os.getpid(), os.getppid())]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def wait_for(log: Path, words: str, process: subprocess.Popen, deadline_s: float, ended: bool = False) -> str:
    """The log once it holds the words."""
    end = time.monotonic() + deadline_s
    while not re.search(words, text := log.read_text() if log.exists() else ""):
        assert time.monotonic() < end, f"no {words!r} in {deadline_s:g} s: {text}"
        assert ended or process.poll() is None, f"ended with {process.returncode} before {words!r}: {text}"
        time.sleep(0.2)
    return text


@pytest.fixture()
def checkouts(tmp_path):
    """Two of them; their heads end with the test."""
    made = [Checkout(tmp_path / name) for name in ("one", "two")]
    yield made
    for checkout in made:
        checkout.make(tmp_path / "stop.log", "stop", []).wait(120)
        left = checkout.head()
        for process in left:
            process.kill()
        shutil.rmtree(checkout.session, ignore_errors=True)
        assert not left, left


def test_gdso_beside_the_tests_of_another_checkout_then_interrupted_and_detached(checkouts, tmp_path):
    one, two = checkouts
    run = [*SMALL, *LONG, f"run.root={tmp_path / 'runs'}"]
    log = tmp_path / "gdso.log"
    job = one.make(log, "gdso", [*run, "run.name=mine"])
    wait_for(log, r"step +1/500", job, 300)

    # with a cluster of their own, and with a head as `make gdso` starts it
    picked = ["tests/run/test_room.py", "tests/cluster/test_local_head.py", "tests/run/test_placement.py"]
    tests = two.make(tmp_path / "test.log", "test", picked)
    assert tests.wait(400) == 0, (tmp_path / "test.log").read_text()
    assert " passed" in (tmp_path / "test.log").read_text()
    assert job.poll() is None, log.read_text()
    started = re.findall(r"step +(\d+)/500", log.read_text())[-1]
    wait_for(log, rf"step +{int(started) + 2}/500", job, 120)  # it went on all the while

    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(200) != 0
    said = log.read_text()
    stopped = re.search(r"error: stopped on request after step (\d+) of 500, .*--resume.*", said)
    assert stopped and "stopping job gdso-" in said, said
    ours = [line for line in said.splitlines() if not line.startswith("make: ")]
    assert re.fullmatch(r"job gdso-\S+: STOPPED", ours[-1]), said
    step = int(stopped.group(1))
    assert (tmp_path / "runs" / "mine" / "checkpoints" / f"step_{step:06d}").is_dir(), said
    for foreign in ("Traceback", "Aborted", "WARNING", "Uploading", "packaging.py"):
        assert foreign not in said, said

    again = one.make(tmp_path / "again.log", "gdso", [*run, "--resume", "latest"], DETACH=1)
    assert again.wait(120) == 0
    assert "it goes on by itself; ray job logs -f gdso-" in (tmp_path / "again.log").read_text()
    resumed = tmp_path / "runs" / "mine" / "progress.log"
    wait_for(resumed, rf"resumed after step {step} .*(\n.*)*step +{step + 2}/500", again, 200, ended=True)
    assert len(one.head()) > 3
