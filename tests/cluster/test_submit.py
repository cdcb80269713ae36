"""What is sent with a job, and what is said when it cannot be sent."""

import importlib.util
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def submit():
    spec = importlib.util.spec_from_file_location("submit", ROOT / "cluster" / "submit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_address_that_nobody_answers_is_one_line(submit):
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        submit.PROBE_DEADLINE_S = 0.3
        for address in ("", "127.0.0.1:6379", "http://127.0.0.1:9", silent):
            with pytest.raises(SystemExit, match="^error: .*RAY_ADDRESS[^\n]*$"):
                submit.refuse_silent_address(address)


def test_a_job_is_sent_with_what_it_needs_and_no_data(submit, tmp_path):
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    for name in ("zr_ray/assets/judge/model.safetensors", "jobs/gdso.py", "jobs/configs/a.yaml", "mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 10)
    for name in ("W/image_0.png", "runs/a/model.safetensors", "tests/test_a.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert dict(submit.largest_folders(tmp_path)) == {"zr_ray/assets": 10, "jobs": 10, "jobs/configs": 10, ".": 10}


def test_too_much_to_send_names_the_largest_folders(submit):
    said = submit.submission_problem(ValueError("Package size (200.00MiB) exceeds the maximum size of 100.00MiB. ..."))
    assert "\n" not in said and "zr_ray/assets" in said and ".rayignore" in said
    assert submit.submission_problem(RuntimeError("no\nroom")) == "error: the cluster did not take the job: no room"


def test_what_a_job_needs_travels_and_nothing_else():
    """Ray's own walk over the checkout: an ignore file that also matches "." would send an empty package."""
    from ray._private.runtime_env.packaging import _dir_travel

    sent = []
    _dir_travel(ROOT, [], lambda path: sent.append(str(path.relative_to(ROOT))), include_gitignore=True)
    assert {"jobs/gdso.py", "zr_ray/__init__.py", "cluster/local_head.py", "pyproject.toml"} <= set(sent)
    assert not [path for path in sent if path.split("/")[0] in ("tests", "docs", ".venv", "runs", ".git", ".cache")]


class Vanishing:
    """A head that shows one line of a job's log, drops the connection twice, and is gone after that or comes back."""

    def __init__(self, comes_back: bool) -> None:
        self.comes_back, self.asked = comes_back, 0

    async def tail_job_logs(self, job):
        self.asked += 1
        yield "step 1/5\n"
        if not self.comes_back or self.asked < 3:
            raise ConnectionResetError("closed by the other side")

    def get_job_status(self, job):
        from ray.job_submission import JobStatus

        return JobStatus.SUCCEEDED


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_head_that_goes_away_while_its_job_is_followed(submit, capsys, monkeypatch, comes_back):
    monkeypatch.setattr(submit, "LOST_PAUSE_S", 0.0)
    client = Vanishing(comes_back)
    assert submit.follow(client, "gdso-1") == (0 if comes_back else 1)
    said = capsys.readouterr()
    assert said.out == "step 1/5\n", "a line is printed once, however often the log is asked for"
    if not comes_back:
        (line,) = said.err.splitlines()
        assert line.startswith("error: the cluster of job gdso-1 does not answer any more") and "--resume" in line
