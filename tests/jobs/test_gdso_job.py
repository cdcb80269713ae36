"""The main job as a user runs it: bad input is refused in one line; two ranks train; a killed run resumes to the same
numbers."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from tests.cluster import dashboard
from tests.run import tracked
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import gauge_name

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "gdso.steps=4",
    "gdso.pairs_per_step=8",
    "gdso.group_size=2",
    "gdso.reference_refresh_steps=2",
    "data.world.train_groups=16",
    "data.world.test_groups=4",
    "evaluation.every_steps=2",
    "evaluation.bootstrap_resamples=50",
    "evaluation.items=8",
    "checkpoint.every_steps=2",
    "learner.warmup_steps=1",
    "rollout.threads=1",
    "learner.threads=1",
    "rollout.max_num_seqs=64",
    "rollout.max_model_len=160",
    "run.trackers=[tensorboard,wandb,mlflow]",
]


@pytest.fixture()
def gdso(run_job, capfd):
    """Run jobs/gdso.py here; returns (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = run_job("gdso", *arguments)
        return code, *capfd.readouterr()

    return run


def metrics_of(run: Path) -> list[dict]:
    """metrics.jsonl without wall-clock values."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster, run_job, tmp_path_factory):
    """(run folder, log) of a whole run."""
    root, log = tmp_path_factory.mktemp("runs"), io.StringIO()
    with redirect_stdout(log):
        assert run_job("gdso", *SMALL, f"run.root={root}", "run.name=whole") == 0, log.getvalue()
    return root / "whole", log.getvalue()


def test_the_dashboard_asks_for_what_a_run_records(uninterrupted):
    lines = (uninterrupted[0] / "metrics.jsonl").read_text().splitlines()
    exported = {f"ray_{gauge_name(key)}" for line in lines for key in json.loads(line)}
    exported |= {"ray_zr_progress_step", "ray_zr_progress_since_step_s"}
    queries = [*dashboard.dashboard_queries(), *dashboard.alert_queries()]
    of_runs = [query for query in queries if dashboard.labels_of(query) == {"run_id"}]
    assert len(of_runs) > 15
    assert {metric for query in of_runs for metric in dashboard.metrics_of(query)} <= exported


def test_run_folder_holds_everything(uninterrupted):
    run, log = uninterrupted
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and [r["method"] for r in result["rows"]] == [
        "zero-shot",
        "base, reasoning",
        "gdso",
    ]
    assert result["noise_ceiling"]["pooled"]["hpa"] > 0.8
    for name in (
        "config.resolved.yaml",
        "environment.json",
        "report.html",
        "judge/model.safetensors",
        "judge/scoring_format.json",
    ):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events*")) and list((run / "checkpoints").glob("step_000004"))
    assert "run whole" in log and "step 4/4" in log and "status SUCCEEDED" in log


def test_on_policy_ratio_and_sync_at_every_step(uninterrupted):
    lines = metrics_of(uninterrupted[0])
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["policy/ratio_max_abs_diff"] < 1e-4 and line["sync/max_abs_diff"] < 1e-5, line
        assert line["rollout/staleness"] == 0.0


def test_killed_run_resumes_to_the_same_numbers(job_environment, uninterrupted, gdso, tmp_path):
    """SIGKILL of a driver in a process of its own after step 3: the checkpoint of step 2 is the newest, step 3's line
    must be dropped and made again."""
    command = [sys.executable, str(ROOT / "jobs" / "gdso.py"), *SMALL, f"run.root={tmp_path}", "run.name=killed"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=job_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    file = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.time() + 240
    while not (file.is_file() and len(file.read_text().splitlines()) >= 3):
        assert time.time() < deadline and process.poll() is None, "the run did not reach step 3"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code, log, errors = gdso(*SMALL, f"run.root={tmp_path}", "--resume", "latest")
    assert code == 0 and "resumed after step" in log, log + errors
    assert metrics_of(tmp_path / "killed") == metrics_of(uninterrupted[0])
    rows = [json.loads((run / "result.json").read_text())["rows"] for run in (tmp_path / "killed", uninterrupted[0])]
    assert rows[0] == rows[1]
    trackers_hold_the_curves(RunFolder(tmp_path / "killed"))


def trackers_hold_the_curves(run: RunFolder) -> None:
    """Once, under the names of metrics.jsonl, with report and table; of a killed run too, but for wall-clock values of
    the steps that were made twice."""
    repeatable = lambda curves: {name: points for name, points in curves.items() if not name.startswith("time/")}
    wanted = repeatable(tracked.written(run))
    assert wanted["loss/total"][-1][0] == 4
    assert repeatable(tracked.wandb_curves(run)) == repeatable(tracked.mlflow_curves(run)) == wanted
    found = tracked.mlflow_run(run)
    assert found.info.status == "FINISHED"
    files = {f.path for f in tracked.mlflow_client(run).list_artifacts(found.info.run_id)}
    assert {"report.html", "table.json"} <= files


def test_trackers_hold_the_curves_of_a_job(uninterrupted):
    trackers_hold_the_curves(RunFolder(uninterrupted[0]))


@pytest.mark.slow
def test_an_absurd_learning_rate_does_not_succeed(ray_cluster, gdso, tmp_path):
    """It used to end with entropy nan, every output malformed and `status SUCCEEDED`, or to blame the weight push."""
    steps = ["gdso.steps=3", "checkpoint.every_steps=1", "evaluation.before=false", "evaluation.every_steps=0"]
    code, log, errors = gdso(*SMALL, *steps, "learner.lr=1e6", f"run.root={tmp_path}", "run.name=wild")
    print(log[-1500:], errors[-1500:])
    assert "SUCCEEDED" not in log + errors
    last = errors.strip().splitlines()[-1] if errors.strip() else log.strip().splitlines()[-1]
    if code == 0:  # it stayed finite, and said nothing: the result says that
        result = json.loads((tmp_path / "wild" / "result.json").read_text())
        assert result["status"] == "FAILED" and "gave no score" in result["problem"]
    else:
        assert last.startswith("error: step ") and "not finite" in last and "learner.lr" in last, last
    kept = list((tmp_path / "wild" / "checkpoints").glob("step_*/**/*model_states.pt"))
    for file in kept:
        weights = torch.load(file, weights_only=False)["module"]
        assert weights and all(bool(value.isfinite().all()) for value in weights.values()), file


AHEAD = ["gdso.clip_low=0.01", "gdso.clip_high=0.01", "learner.lr=1e-3", "run.trackers=[tensorboard]"]
"""So fast, and clipped so narrowly, that one version makes a difference in four steps."""


@pytest.mark.slow
def test_engines_sample_ahead_of_the_learner(ray_cluster, gdso, tmp_path):
    """Each step but the first is sampled by the weights before its own; the ratio to them is not 1, and is clipped."""
    code, log, errors = gdso(*SMALL, *AHEAD, "gdso.max_staleness=1", f"run.root={tmp_path}", "run.name=ahead")
    assert code == 0 and "status SUCCEEDED" in log, log + errors
    lines = metrics_of(tmp_path / "ahead")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert [line["rollout/staleness_max"] for line in lines] == [0, 1, 1, 1]
    assert all(line["rollout/groups"] == 16 and line["rollout/left_pairs"] == 0 for line in lines)
    assert lines[0]["policy/ratio_max_abs_diff"] < 1e-4 and lines[0]["policy/clip_frac"] < 0.01
    for line in lines[1:]:
        assert line["policy/ratio_max_abs_diff"] > 1e-2 and line["policy/ratio_mean"] != 1.0, line
        assert 0 < line["policy/clip_frac"] < 1, line
    # the last push that was proved in each step: an evaluation wants the newest at once
    assert [line.get("sync/version") for line in lines] == [0, 2, None, 4]
    assert all(line.get("sync/max_abs_diff", 0) < 1e-5 for line in lines)
    rows = json.loads((tmp_path / "ahead" / "result.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "base, reasoning", "gdso"]


@pytest.mark.slow
def test_two_ranks_sample_ahead(ray_cluster, gdso, tmp_path):
    """Two DeepSpeed ranks with ZeRO-2 and one engine that they share: each asks for its own pairs ahead of its step,
    and both wait for a push that the engine takes between their calls."""
    two = ["learner.workers=2", "learner.zero_stage=2", "rollout.cpus=0.5", "learner.cpus=0.5"]
    code, log, errors = gdso(*SMALL, *AHEAD, *two, "gdso.max_staleness=1", f"run.root={tmp_path}", "run.name=two_ahead")
    assert code == 0 and "status SUCCEEDED" in log, log + errors
    lines = metrics_of(tmp_path / "two_ahead")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["rollout/staleness_max"] == 0 and all(line["rollout/staleness_max"] <= 1 for line in lines)
    assert any(line["rollout/staleness"] > 0 for line in lines)
    assert all(line["rollout/groups"] == 16 and line["rollout/left_pairs"] == 0 for line in lines)
    assert all(line.get("sync/max_abs_diff", 0) < 1e-5 for line in lines)


@pytest.mark.slow
def test_a_killed_run_that_samples_ahead_loses_no_pair(job_environment, gdso, tmp_path):
    """SIGKILL of the driver; steps leave pairs to the next one, the checkpoint says which. 16 groups a step in all."""
    run = [*SMALL, *AHEAD, "gdso.max_staleness=2", "gdso.collect_frac=0.25", "gdso.collect_parts=8"]
    run += ["gdso.steps=6", "checkpoint.every_steps=1", f"run.root={tmp_path}"]
    command = [sys.executable, str(ROOT / "jobs" / "gdso.py"), *run, "run.name=killed"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=job_environment, stdout=log, stderr=subprocess.STDOUT)
        file = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.time() + 240
        while not (file.is_file() and len(file.read_text().splitlines()) >= 3):
            assert time.time() < deadline and process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    code, again, errors = gdso(*run, "--resume", "latest")
    assert code == 0 and "resumed after step" in again, again + errors
    lines = metrics_of(tmp_path / "killed")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert sum(line["rollout/groups"] for line in lines) == 6 * 16
    assert any(line["rollout/left_pairs"] for line in lines) and lines[-1]["rollout/left_pairs"] == 0
    for before, line in zip([None, *lines], lines, strict=False):
        carried = before["rollout/left_pairs"] if before else 0
        assert line["rollout/groups"] == 2 * (carried + 8 - line["rollout/left_pairs"])
    assert all(line["rollout/staleness_max"] <= 2 and line.get("sync/max_abs_diff", 0) < 1e-5 for line in lines)


def test_two_ranks_follow_one_rank(ray_cluster, uninterrupted, gdso, tmp_path):
    """Two DeepSpeed ranks with ZeRO-2 that share one rollout actor: the same first step up to rounding."""
    code, log, errors = gdso(
        *SMALL,
        f"run.root={tmp_path}",
        "run.name=two",
        "learner.workers=2",
        "learner.zero_stage=2",
        "rollout.cpus=0.5",
        "learner.cpus=0.5",
        "gdso.steps=2",
        "evaluation.before=false",
        "evaluation.every_steps=0",
    )
    assert code == 0, log + errors
    one, two = metrics_of(uninterrupted[0]), metrics_of(tmp_path / "two")
    assert one[0]["rollout/tokens_per_sample"] == two[0]["rollout/tokens_per_sample"]
    for name in ("loss/pointwise", "loss/pairwise", "loss/policy", "reward/total", "learner/grad_norm"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-5), name
    assert len(two) == 2 and all(line["sync/max_abs_diff"] < 1e-5 for line in two)


def bad_data(tmp_path, split=None, **changes):
    """A data folder with one broken record on line 2, or with all records of a split broken alike."""
    from zr_ray.world.build import write_world

    write_world(tmp_path / "data", train_groups=2, test_groups=2, seed=1)
    file = tmp_path / "data" / "annotations.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for n, record in enumerate(records):
        if n == 1 if split is None else record["split"] == split:
            record |= changes
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "data"


def two_token_labels(tmp_path):
    import shutil

    from zr_ray.models.judge_text import judge_folder

    folder = tmp_path / "judge"
    shutil.copytree(judge_folder("builtin"), folder)
    path = folder / "scoring_format.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"labels": ["1", "2", "3", "4", "5", "6", "7", "8", "small red"]})
    )
    return folder


BAD = {
    "unknown key": (lambda t: ["gdso.group_sise=4"], r"did you mean .*group_size"),
    "group of one": (lambda t: ["gdso.group_size=1"], "gdso.group_size must be at least 2 for a group baseline, got 1"),
    "wrong type": (lambda t: ["learner.lr=fast"], "learner.lr"),
    "temperature": (lambda t: ["rollout.temperature=0.7"], "rollout.temperature is no key any more"),
    "stage 0 in bf16": (
        lambda t: ["learner.zero_stage=0", "learner.dtype=bfloat16"],
        "zero_stage must be at least 1 with learner.dtype bfloat16",
    ),
    "missing model": (
        lambda t: [f"judge.path={t}/nowhere"],
        "judge.path must be one of builtin, small, .*student.*, or a Hugging Face model folder",
    ),
    "two-token label": (
        lambda t: [f"judge.path={two_token_labels(t)}"],
        "score label 'small red' must be exactly one token",
    ),
    "missing config": (lambda t: ["--config", f"{t}/none.yaml"], "none.yaml"),
    "off-scale score": (
        lambda t: [f"data.path={bad_data(t, scores={'realism': 7.0})}", "--dry-run"],
        r"annotations.jsonl.*2",
    ),
    "missing image": (lambda t: [f"data.path={bad_data(t, image='images/gone.png')}", "--dry-run"], "gone.png"),
    "unknown dimension": (lambda t: [f"data.path={bad_data(t, scores={'beauty': 3.0})}", "--dry-run"], "beauty"),
    "empty split": (lambda t: [f"data.path={bad_data(t)}", "evaluation.split=dev", "--dry-run"], "dev"),
    "ties only": (
        lambda t: [f"data.path={bad_data(t, split='train', scores={'realism': 3.0})}"],
        "at least one same-prompt pair with different scores in split 'train', got none: .*all tied",
    ),
    "ties only, dry run": (
        lambda t: [f"data.path={bad_data(t, split='train', scores={'realism': 3.0})}", "--dry-run"],
        "at least one same-prompt pair with different scores in split 'train', got none: .*all tied",
    ),
    "control token in a test prompt": (
        lambda t: [f"data.path={bad_data(t, split='test', prompt='a <|image_pad|> cube')}"],
        r"line \d+: item '.*': a prompt must not hold control tokens, got '<\|image_pad\|>'",
    ),
    "prompt of 5,000 words": (
        lambda t: [f"data.path={bad_data(t, split='test', prompt='red ' * 5000)}", "rollout.max_model_len=256"],
        r"line \d+: item '.*': the question must have at most \d+ tokens .*, got 50\d\d",
    ),
    "nothing to resume": (lambda t: ["--resume", f"{t}/no-run"], "no-run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name, tmp_path, gdso):
    """None of these may reach Ray."""
    make, expected = BAD[name]
    code, _, message = gdso(*make(tmp_path))
    message = message.strip()
    assert code == 1 and len(message.splitlines()) == 1 and message.startswith("error: "), message
    assert re.search(expected, message), message
    print(f"{name}: {message}")


def test_infeasible_placement_is_refused_before_an_engine_starts(ray_cluster, gdso, tmp_path):
    code, _, message = gdso(f"run.root={tmp_path}", "learner.workers=64", "gdso.pairs_per_step=64")
    assert code == 1 and "the job wants" in message and "Traceback" not in message, message
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_configuration_and_resources(gdso):
    code, plan, _ = gdso("--config", ROOT / "jobs" / "configs" / "gdso_tiny.yaml", "--dry-run")
    assert code == 0 and "pairs_per_step" in plan and "# rollout: 2 x {'CPU': 0.5}" in plan and "# learner: 1 x" in plan
