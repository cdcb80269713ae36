"""Trackers with the real libraries: what W&B and MLflow hold offline is read back and compared with metrics.jsonl."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import ray

from tests.run.tracked import (
    mlflow_client,
    mlflow_curves,
    mlflow_run,
    tensorboard_curves,
    wandb_curves,
    wandb_records,
    written,
)
from zr_ray.config.gdso import GdsoConfig
from zr_ray.config.loader import load_config, schema_help
from zr_ray.config.risd import RisdConfig
from zr_ray.config.sections import TrackedRunSection
from zr_ray.config.serve import ServeConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import ConfigError
from zr_ray.report.publish import publish, table_of
from zr_ray.run.folder import RunFolder
from zr_ray.run.launch import launch
from zr_ray.run.observe import Metrics
from zr_ray.run.trackers import Trackers, check_trackers

ALL = TrackedRunSection(trackers=("tensorboard", "wandb", "mlflow"))


def metrics_of(step: int) -> dict[str, float]:
    return {"loss/total": 1 / step, "time/step_s": 0.5 * step, "eval/hpa": 0.7 if step % 2 else math.nan}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "first", load_config(GdsoConfig, None, ["gdso.steps=40"]))


def log(run: RunFolder, settings: TrackedRunSection, steps, resumed_after_step: int | None = None) -> None:
    sink = Metrics(run, resumed_after_step, settings)
    for step in steps:
        sink.log(step, metrics_of(step))
    sink.close()


def test_every_tracker_holds_the_curves_of_a_killed_and_resumed_run_once(run):
    log(run, ALL, (1, 2, 3), 0)
    log(RunFolder(run.path), ALL, (2, 3, 4), resumed_after_step=1)  # killed after step 3, the checkpoint was of step 1
    curves = written(run)
    assert wandb_curves(run) == mlflow_curves(run) == curves
    assert curves["loss/total"] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert curves["eval/hpa"] == [(1, 0.7), (3, 0.7)], "a value that is not a number is no point"
    boards = tensorboard_curves(run)
    assert {name: [step for step, _ in points] for name, points in boards.items()} == {
        name: [step for step, _ in points] for name, points in curves.items()
    }
    ids = {r.run.run_id for r in wandb_records(run) if r.WhichOneof("record_type") == "run"}
    assert ids == {"first"}, "both attempts are one run there"


@pytest.mark.parametrize("arrived", [[], ["loss/total"]])
def test_a_step_that_a_kill_cut_short_is_whole_after_the_resume(run, arrived):
    """metrics.jsonl had it, MLflow had part of it or nothing."""
    log(run, ALL, (1, 2))
    run.append_metrics(3, metrics_of(3))
    for name in arrived:
        mlflow_client(run).log_metric(mlflow_run(run).info.run_id, name, metrics_of(3)[name], step=3)
    log(run, ALL, (2, 3, 4), resumed_after_step=1)
    assert mlflow_curves(run) == written(run)


def test_a_tracker_that_joins_at_a_resume_gets_the_steps_before(run):
    log(run, TrackedRunSection(), (1, 2, 3), 0)
    log(RunFolder(run.path), TrackedRunSection(trackers=("mlflow",)), (3,), 2)
    assert mlflow_curves(run) == written(run)
    assert [step for step, _ in mlflow_curves(run)["loss/total"]] == [1, 2, 3]


def test_configuration_and_status(run):
    log(run, ALL, (1,), 0)
    found = mlflow_run(run)
    assert found.info.run_name == "first" and found.info.status == "RUNNING"
    assert found.data.params["gdso.steps"] == "40" and found.data.params["learner.lr"] == "0.0002"
    keys = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") == "run":
            keys |= {item.key: item.value_json for item in record.run.config.update}
    assert keys["gdso.steps"] == "40"


def agreement(hpa):
    return {"hpa": hpa, "hpa_ci": [0.6, 0.8], "margin_hpa": None, "plcc": 0.5, "srcc": 0.4}


def finish(run: RunFolder, **changes) -> None:
    row = {"pooled": agreement(0.7), "dimensions": {"realism": agreement(0.75)}, "tokens_per_score": 12.0}
    head = {"job": "risd", "run_id": run.run_id, "status": "SUCCEEDED", "wall_s": 3.0, "noise_ceiling": None}
    run.write_result(head | {"rows": [{"method": "risd"} | row]} | changes)
    (run.path / "report.html").write_text("<p>report</p>")
    run.judge.mkdir()
    (run.judge / "README.md").write_text("# What this judge is")


def test_table_report_and_card_are_where_the_tracker_can_hold_them(run):
    log(run, ALL, (1, 2), 0)
    finish(run)
    said = []
    publish(run, ALL, said.append)
    assert said == []
    client, found = mlflow_client(run), mlflow_run(run)
    assert found.info.status == "FINISHED"
    files = {f.path for f in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "result.json", "table.json", "judge_card"} <= files, files
    stored = Path(client.download_artifacts(found.info.run_id, "judge_card/README.md"))
    assert stored.read_text() == "# What this judge is"
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "table.json")).read_text())
    assert table["data"] == [["risd", 0.7, 0.6, 0.8, None, 0.5, 0.4, 12.0, 0.75]]
    logged = {r.artifact.name for r in wandb_records(run) if r.WhichOneof("record_type") == "artifact"}
    assert {"first-report", "first-result", "first-judge_card"} <= logged, logged
    tables = list(run.path.glob("wandb/offline-run-*/files/media/table/*.json"))
    assert [json.loads(t.read_text())["data"] for t in tables] == [table["data"]]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    (shown,) = events.Tensors("table/text_summary")
    assert "| risd | 0.7 | 0.6 | 0.8 |  | 0.5 |" in shown.tensor_proto.string_val[0].decode()
    assert events.Tensors("judge_card/text_summary")
    assert wandb_curves(run) == mlflow_curves(run) == written(run), "artifacts are no points"


def test_a_run_that_failed_in_the_end_is_failed_there(run):
    finish(run, status="FAILED")
    publish(run, ALL)
    assert mlflow_run(run).info.status == "FAILED"


def test_a_generators_table_has_a_figure_a_row():
    figures = {"reward/sum": {"before": 1.0, "after": 2.0, "difference": 1.0, "low": 0.5, "high": 1.5, "error": 0.2}}
    columns, rows = table_of({"figures": figures})
    assert columns == ["figure", "before", "after", "difference", "low", "high"]
    assert rows == [["reward/sum", 1.0, 2.0, 1.0, 0.5, 1.5]]


def test_a_tracker_that_fails_is_named_and_dropped_and_the_run_goes_on(run, monkeypatch):
    said = []
    trackers = Trackers(run, ALL, said.append)
    trackers.log(1, metrics_of(1))
    store = run.path.parent / "mlruns"
    store.rename(store.with_name("gone"))
    store.write_text("the store's disk is not there any more")
    trackers.log(2, metrics_of(2))
    trackers.log(3, metrics_of(3))
    trackers.close()
    assert len(said) == 1 and said[0].startswith("warning: mlflow gets nothing more of this run: "), said
    assert [step for step, _ in wandb_curves(run)["loss/total"]] == [1, 2, 3]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_refused_before_anything_starts(monkeypatch, tmp_path, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *a: None if module == name else found(module, *a))
    config = load_config(GdsoConfig, None, [f"run.trackers=[tensorboard, {name}]", f"run.root={tmp_path / 'runs'}"])

    def never(*_):
        raise AssertionError("must not be reached")

    joined = ray.is_initialized()  # by another test of this process
    with pytest.raises(ConfigError, match=rf"asks for {name}, which is not installed; pip install 'zr_ray\[{name}\]'"):
        launch("gdso", config, False, never, never)
    assert ray.is_initialized() == joined


@pytest.mark.parametrize(("name", "lacks"), [("wandb", "WANDB_API_KEY"), ("mlflow", "MLFLOW_TRACKING_URI")])
def test_online_without_a_key_or_an_address_is_refused(monkeypatch, tmp_path, name, lacks):
    for variable in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    settings = TrackedRunSection(trackers=(name,), trackers_offline=False)
    with pytest.raises(ConfigError, match=f"run.trackers_offline=false needs .*{lacks}"):
        check_trackers(settings)
    monkeypatch.setenv(lacks, "file:///nowhere")
    check_trackers(settings)


def test_only_jobs_with_curves_have_trackers():
    for with_curves in (GdsoConfig, RisdConfig, T2iConfig):
        assert "run.trackers" in schema_help(with_curves)
    assert "run.trackers" not in schema_help(ServeConfig)
    with pytest.raises(ConfigError, match="unknown|not known|trackers"):
        load_config(ServeConfig, None, ["run.trackers=[wandb]"])
    with pytest.raises(ConfigError, match="must name each tracker once"):
        load_config(GdsoConfig, None, ["run.trackers=[wandb, wandb]"])
