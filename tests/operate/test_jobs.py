"""The installed package's own doors: named runs by name, one line for what is wrong, the same plan as jobs/."""

from __future__ import annotations

from pathlib import Path

import pytest

from zr_ray.__main__ import main
from zr_ray.errors import ConfigError
from zr_ray.operate.jobs import JOBS, named_run

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"


def test_named_runs_are_found_by_name_and_by_path():
    assert named_run(CONFIGS / "gdso_tiny.yaml") == CONFIGS / "gdso_tiny.yaml"
    assert named_run(Path("gdso_tiny")).read_text() == (CONFIGS / "gdso_tiny.yaml").read_text()
    with pytest.raises(ConfigError, match="a named run .*gdso_tiny.*, got gdso_tyni"):
        named_run(Path("gdso_tyni"))


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_a_configuration_that_loads_without_a_file(job):
    assert JOBS[job].config_class()


def test_a_dry_run_by_name(capsys):
    assert main(["gdso", "--config", "gdso_tiny", "--dry-run", "gdso.steps=7", "learner.warmup_steps=2"]) == 0
    assert "steps: 7" in capsys.readouterr().out


def test_what_is_wrong_is_one_line(capsys):
    assert main(["gdso", "--dry-run", "gdso.stepps=7"]) == 1
    assert "did you mean gdso.steps?" in capsys.readouterr().err
    assert main(["validate", "/nowhere.yaml"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read /nowhere.yaml")
    assert main(["nonsense"]) == 2 and main(["--help"]) == 0
