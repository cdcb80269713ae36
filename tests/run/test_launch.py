"""The frame of every job: the order of refusals, what a dry run does and does not do. No Ray is started: a dry run, and
every refusal here, comes before it."""

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import CheckpointError, ConfigError, DataError
from zr_ray.run.folder import RunFolder
from zr_ray.run.launch import Plan, launch


def config(root, **run):
    return GdsoConfig.model_validate({"run": {"root": str(root), **run}})


def never(*_):
    raise AssertionError("must not be reached")


def plan(resumed):
    return Plan(
        7,
        {"judge": "folder of it"},
        {"judge.path": "abc"},
        ({"reader": [{"CPU": 0.25}]}, {"learner": [{"CPU": 1.0}] * 2}),
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    launch("gdso", config(tmp_path / "runs"), True, plan, never)
    said = capsys.readouterr().out
    assert "# judge: folder of it" in said and "# reader: 1 x {'CPU': 0.25}" in said and "# learner: 2 x" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_run_that_is_not_there_is_refused_before_the_jobs_own_check(tmp_path, dry_run):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        launch("gdso", config(tmp_path, resume="no-run"), dry_run, never, never)


@pytest.mark.parametrize("dry_run", [True, False])
def test_other_settings_are_refused_in_a_dry_run_too(tmp_path, dry_run):
    run = RunFolder.create(tmp_path, "first", config(tmp_path))
    changed = GdsoConfig.model_validate(config(tmp_path, resume=str(run.path)).model_dump() | {"gdso": {"steps": 7}})
    with pytest.raises(CheckpointError, match="gdso.steps was 60, now 7"):
        launch("gdso", changed, dry_run, never, never)


def test_the_check_sees_the_run_that_is_resumed(tmp_path):
    run, seen = RunFolder.create(tmp_path, "first", config(tmp_path)), []

    def check(resumed):
        seen.append(resumed.path)
        return plan(resumed)

    launch("gdso", config(tmp_path, resume="latest"), True, check, never)
    assert seen == [run.path]


def test_what_the_check_refuses_leaves_no_folder(tmp_path):
    def check(resumed):
        raise DataError("line 2")

    with pytest.raises(DataError, match="line 2"):
        launch("gdso", config(tmp_path / "runs"), False, check, never)
    assert not (tmp_path / "runs").exists()


def test_a_service_has_nothing_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="a service has nothing to resume"):
        launch("serve", config(tmp_path, resume="latest"), True, never, never, keeps_folder=False)


def test_other_contents_of_an_input_are_refused(tmp_path):
    run = RunFolder.create(tmp_path, "first", config(tmp_path))
    run.write_json("inputs.json", {"judge.path": "abc", "data.path": "1"})
    again = config(tmp_path, resume="latest")
    launch("gdso", again, True, plan, never)  # what is not asked about is no reason
    other = lambda resumed: Plan(7, {}, {"judge.path": "abc", "data.path": "2"})
    with pytest.raises(CheckpointError, match="the contents of data.path are not what the run began with"):
        launch("gdso", again, True, other, never)
