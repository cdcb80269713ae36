"""What a run's folder says about it, at every stage of a run."""

from __future__ import annotations

import os
import time

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import ConfigError
from zr_ray.operate import status
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint
from zr_ray.run.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path, "one", GdsoConfig())


def age(folder, seconds: float) -> None:
    for path in folder.iterdir():
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def test_from_the_start_to_the_end(run, tmp_path, capsys):
    now = time.time()
    first = status.read_status(run.path, now)
    assert (first.state, first.step, first.checkpoint, first.phase) == ("running", None, None, "")

    run.append_metrics(1, {"loss/total": 1.0})
    run.append_metrics(2, {"loss/total": 0.5})
    (run.path / "progress.log").write_text("step 1/4\nstep 2/4  torn")
    temporary = begin_checkpoint(run.checkpoints, 2)
    (temporary / "state.bin").write_bytes(b"x")
    finish_checkpoint(temporary, 2)
    during = status.read_status(run.path, time.time())
    assert (during.step, during.checkpoint, during.phase) == (2, 2, "step 1/4")
    assert during.checkpoint_age_s < 60

    age(run.path, 3600)
    silent = status.read_status(run.path, time.time())
    assert silent.state == "silent" and 3500 < silent.silent_s < 3700

    run.write_json("result.json", {"status": "SUCCEEDED"})
    assert status.read_status(run.path, time.time()).state == "SUCCEEDED"
    assert status.main(["--root", str(tmp_path)]) == 0
    assert "one  SUCCEEDED  step 2  last sign" in capsys.readouterr().out


def test_one_run_with_its_last_lines(run, tmp_path, capsys):
    (run.path / "progress.log").write_text("".join(f"step {i}\n" for i in range(9)))
    assert status.main(["--root", str(tmp_path), "--run", "one"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"    step {i}" for i in range(4, 9)]


def test_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        status.main(["--root", str(tmp_path), "--run", "none"])
    with pytest.raises(ConfigError, match="is no folder"):
        status.main(["--root", str(tmp_path / "nowhere")])
