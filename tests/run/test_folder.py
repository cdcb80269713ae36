"""The run folder: atomic, refusing to mix runs, and metrics that survive a crash; plus the sinks that write into it."""

import json
import os
import pickle
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config
from zr_ray.errors import CheckpointError, ConfigError
from zr_ray.run import environment
from zr_ray.run import folder as run_folder
from zr_ray.run.folder import METRICS_FILE, RunFolder, default_root, find_run
from zr_ray.run.observe import Metrics, Progress, Timer, console_line, duration, gauge_name


def config(*overrides: str) -> GdsoConfig:
    return load_config(GdsoConfig, None, list(overrides))


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "first", config())


def test_create_writes_what_was_asked_and_where_it_ran(run):
    assert load_config(GdsoConfig, run.path / "config.resolved.yaml", []) == config()
    recorded = json.loads((run.path / "environment.json").read_text())
    assert recorded["resumed"] == []
    assert {"python", "packages", "hardware", "git", "command"} <= set(recorded["started"])
    assert recorded["started"]["packages"]["torch"].startswith("2.")
    assert (run.path.parent / "latest").resolve() == run.path
    assert os.readlink(run.path.parent / "latest") == "first", "relative, so that the root can be moved"


def test_ids_are_made_from_job_and_time(tmp_path):
    ids = {RunFolder.create(tmp_path, None, config(), "risd").run_id for _ in range(3)}
    assert len(ids) == 3
    assert all(
        time.strftime("risd-%Y%m%d-") == one[:14] and len(one) == len("risd-20260101-000000-abcd") for one in ids
    )
    assert (tmp_path / "latest").resolve().name in ids


def test_a_taken_name_is_refused(run):
    with pytest.raises(
        ConfigError, match="first already exists; choose another run.name, or continue it with run.resume="
    ):
        RunFolder.create(run.path.parent, "first", config())


def test_an_unwritable_root_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make run folder .*set run.root"):
        RunFolder.create(tmp_path / "file" / "runs", "x", config())


def test_default_root(monkeypatch, tmp_path):
    checkout = Path(__file__).parents[2]
    if environment.checkout() is not None:
        assert default_root() == environment.checkout() / "runs" and environment.checkout().samefile(checkout)
    monkeypatch.setattr(run_folder, "checkout", lambda: None)
    monkeypatch.setenv("ZR_RUNS", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("ZR_RUNS")
    with pytest.raises(ConfigError, match="set run.root"):
        default_root()


def test_git_state_of_a_checkout(tmp_path):
    def git(*command):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *command],
            check=True,
            capture_output=True,
        )

    assert environment._git(None) == environment._git(tmp_path) == {"commit": "unknown", "dirty": "unknown"}
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    state = environment._git(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert environment._git(tmp_path) == state | {"dirty": True}


def test_resume_under_the_same_configuration(run):
    RunFolder.create(run.path.parent, "second", config())
    resumed = RunFolder.start(
        config("run.resume=first", f"run.root={run.path.parent}", "rollout.deadline_s=5", "run.seed=0")
    )
    assert resumed.path == run.path
    assert (run.path.parent / "latest").resolve() == run.path
    assert len(json.loads((run.path / "environment.json").read_text())["resumed"]) == 1
    assert RunFolder.start(config("run.resume=latest", f"run.root={run.path.parent}")).path == run.path
    assert RunFolder.start(config(f"run.resume={run.path}")).path == run.path


def test_resume_under_another_configuration_names_the_keys(run):
    with pytest.raises(CheckpointError) as refused:
        RunFolder.open(run.path, config("run.seed=1", "learner.lr=1e-3", "gdso.steps=90", "run.name=other"))
    assert "run.seed was 0, now 1, gdso.steps was 60, now 90;" in str(refused.value)
    assert "run.name" not in str(refused.value) and "learner.lr" not in str(refused.value)


def test_rows_of_a_table_are_keys_too(tmp_path):
    """A table resumed without its configuration file has other rows: named, not a crash. Seeds may be added."""
    from zr_ray.config.t2i_table import T2iTableConfig

    told = ["table.rows={nft: [], flow.bp: [t2i.algorithm=flowbp]}", "table.seeds=[0]"]
    run = RunFolder.create(tmp_path, "table", load_config(T2iTableConfig, None, told))
    with pytest.raises(CheckpointError, match=r"table\.rows\.flow\.bp was \['t2i.algorithm=flowbp'\], now not there"):
        RunFolder.open(run.path, load_config(T2iTableConfig, None, ["table.seeds=[0]"]))
    more = load_config(T2iTableConfig, None, [*told[:1], "table.seeds=[0,1]", "table.stop_after_s=60"])
    RunFolder.open(run.path, more)
    assert json.loads((run.path / "environment.json").read_text())["resumed"][0]["changed"]["table.seeds"][1] == [0, 1]


def test_a_table_of_judges_is_resumed_with_more_seeds_of_a_row_and_without_its_speeds(tmp_path):
    from zr_ray.config.table import TableConfig

    def told(*more):
        return load_config(TableConfig, None, ["table.rows={sft: {job: sft}, gdso: {seeds: [2]}}", *more])

    run = RunFolder.create(tmp_path, "table", told("table.speed_images=64"))
    now = ["table.speed_images=0", "table.rows={gdso: {seeds: [0, 2]}}", "table.claims=[[gdso, sft]]"]
    RunFolder.open(run.path, told(*now))
    with pytest.raises(CheckpointError, match=r"table\.rows\.gdso\.job was gdso, now opd"):
        RunFolder.open(run.path, told("table.rows={gdso: {job: opd}}"))


def test_what_may_change_on_resume_is_recorded(run):
    RunFolder.open(run.path, config("learner.lr=1e-3"))
    (entry,) = json.loads((run.path / "environment.json").read_text())["resumed"]
    assert entry["changed"]["learner.lr"] == [0.0002, 0.001]
    RunFolder.open(run.path, config("learner.lr=1e-3"))  # the new value is the run's now
    assert "learner.lr" not in json.loads((run.path / "environment.json").read_text())["resumed"][1]["changed"]


def test_resume_of_nothing(tmp_path, run):
    with pytest.raises(CheckpointError, match="nothing to resume: .*/latest does not exist"):
        find_run("latest", tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is no run folder"):
        RunFolder.open(tmp_path, config())
    (run.path / "config.resolved.yaml").write_text("gdso:\n  forgotten_key: 3\n")
    with pytest.raises(CheckpointError, match="another version of zr_ray.*forgotten_key"):
        RunFolder.open(run.path, config())


def test_metrics_lines_are_exact_and_strictly_ordered(run):
    value = 0.1 + 0.2
    run.append_metrics(0, {"loss/total": np.float32(0.1), "x": float("nan"), "y": -float("inf")})
    run.append_metrics(3, {"loss/total": value})
    assert run.read_metrics() == [
        {"step": 0, "loss/total": float(np.float32(0.1)), "x": None, "y": None},
        {"step": 3, "loss/total": value},
    ]
    for step in (3, 1):
        with pytest.raises(ValueError, match="must come after step 3"):
            run.append_metrics(step, {})
        with pytest.raises(ValueError, match="must come after step 3"):
            RunFolder(run.path).append_metrics(step, {})


def test_rewinding_makes_a_resumed_file_equal_to_an_uninterrupted_one(run, tmp_path):
    values = {step: {"reward/total": 1 / (step + 3)} for step in range(6)}
    whole = RunFolder.create(tmp_path / "runs", "whole", config())
    for step in range(6):
        whole.append_metrics(step, values[step])
    for step in range(5):
        run.append_metrics(step, values[step])
    with open(run.path / METRICS_FILE, "a") as file:
        file.write('{"step": 5, "reward/to')  # the process died here
    resumed = RunFolder(run.path)
    assert [line["step"] for line in resumed.read_metrics()] == [0, 1, 2, 3, 4]
    resumed.rewind_metrics(2)
    for step in range(3, 6):
        resumed.append_metrics(step, values[step])
    assert (run.path / METRICS_FILE).read_bytes() == (whole.path / METRICS_FILE).read_bytes()


def test_a_torn_line_does_not_swallow_the_next(run):
    run.append_metrics(1, {"a": 1})
    with open(run.path / METRICS_FILE, "a") as file:
        file.write('{"step": 2')
    pickle.loads(pickle.dumps(RunFolder(run.path))).append_metrics(2, {"a": 2})
    assert [line["a"] for line in run.read_metrics()] == [1, 2]


def agreement(hpa=0.8):
    return {"hpa": hpa, "hpa_ci": [0.75, 0.85], "margin_hpa": 0.9, "plcc": 0.5, "srcc": 0.4}


def result(**changes):
    row = {
        "method": "zero-shot",
        "pooled": agreement(),
        "dimensions": {"realism": agreement()},
        "tokens_per_score": 20.0,
    }
    return {
        "job": "gdso",
        "run_id": "first",
        "status": "SUCCEEDED",
        "wall_s": 3.0,
        "rows": [row],
        "noise_ceiling": None,
    } | changes


def test_result_is_checked_and_finite(run):
    run.write_result(
        result(extra={"sync": float("nan")})
        | {"rows": [result()["rows"][0] | {"pooled": agreement(np.float64("nan"))}]}
    )
    back = run.read_result()
    assert back["rows"][0]["pooled"]["hpa"] is None and back["extra"] == {"sync": None}
    for broken, named in [
        (result(status="DONE"), "status"),
        (result(rows=[]), "rows"),
        (result(rows=[result()["rows"][0] | {"pooled": agreement(80.0)}]), "rows.0.pooled.hpa"),
        ({key: value for key, value in result().items() if key != "wall_s"}, "wall_s"),
        (result(rows=[{"method": "x", "pooled": {"hpa": 0.5}, "dimensions": {}}]), "rows.0.pooled.plcc"),
    ]:
        with pytest.raises(ValueError, match=f"result.json breaks its schema.*{named}"):
            run.write_result(broken)
    assert run.read_result() == back, "a refused result leaves the old one"


def test_no_result_yet(run):
    with pytest.raises(CheckpointError, match="has no result.json"):
        run.read_result()


def test_a_failed_write_keeps_the_old_file(run, monkeypatch):
    run.write_text("notes/a.txt", "old")
    monkeypatch.setattr(run_folder.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        run.write_text("notes/a.txt", "new")
    assert (run.path / "notes" / "a.txt").read_text() == "old"


def test_metrics_sink_writes_both_files_and_rewinds_both(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = Metrics(run)
    for step in range(4):
        sink.log(step, {"reward/total": 0.5 + step, "bad": float("nan")})
    sink.close()
    resumed = Metrics(RunFolder(run.path), resumed_after_step=1)
    resumed.log(2, {"reward/total": 7.0})
    resumed.close()
    assert [line["reward/total"] for line in run.read_metrics()] == [0.5, 1.5, 7.0]
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/total")] == [(0, 0.5), (1, 1.5), (2, 7.0)]
    assert events.Tags()["scalars"] == ["reward/total"], "a value that is not a number is not drawn"


def test_console_line():
    line = console_line(
        7, 60, {"reward/total": 0.51234, "sync/max_abs_diff": 4.2e-7, "rollout/malformed_frac": 0.015, "other": 1}, 200
    )
    assert line == "step  7/60  reward 0.5123  malformed 1.5%  sync 4.2e-07  ETA 3 min 20 s"
    assert [duration(s) for s in (-1, 59.4, 59.6, 3599, 7800)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 10 min",
    ]
    assert gauge_name("time/generate_s") == "zr_time_generate_s"


def test_progress_is_steps_times_the_median_pace(monkeypatch):
    clock = iter([0.0, 2.0, 4.0, 106.0, 108.0])
    monkeypatch.setattr("zr_ray.run.observe.time.monotonic", lambda: next(clock))
    progress = Progress(total=10)
    assert [progress.eta_s(step) for step in (1, 2, 3, 4)] == [18.0, 16.0, 14.0, 12.0]


def test_timer_adds_up_phases_and_starts_anew():
    timer = Timer()
    for _ in range(2):
        with timer("generate"):
            time.sleep(0.02)
    with pytest.raises(KeyError), timer("train"):
        raise KeyError
    taken = timer.take()
    assert set(taken) == {"time/generate_s", "time/train_s", "time/step_s"}
    assert 0.04 <= taken["time/generate_s"] <= taken["time/step_s"]
    assert set(timer.take()) == {"time/step_s"}
