"""RISD, OPD and the audit as a user runs them, in one cluster: offline and online give one loss; what they leave
behind."""

import json

import numpy as np
import pytest

from tests.run import tracked
from zr_ray.run.folder import RunFolder

pytestmark = pytest.mark.slow  # four jobs with their engines
TEACHER = [
    "teacher.path=builtin",
    "label.traces=2",
    "rollout.threads=1",
    "rollout.max_num_seqs=64",
    "rollout.max_model_len=160",
]
SMALL = [
    "learner.threads=1",
    "learner.warmup_steps=1",
    "evaluation.every_steps=0",
    "evaluation.bootstrap_resamples=50",
    "checkpoint.every_steps=4",
    "run.trackers=[tensorboard,mlflow]",
]


@pytest.fixture(scope="module")
def job(ray_cluster, run_job):
    """Run jobs/<name>.py on the session's cluster; returns its exit code."""
    return run_job


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of all runs, with the data that they share."""
    from zr_ray.world.build import write_world

    root = tmp_path_factory.mktemp("runs")
    write_world(root / "data", train_groups=5, test_groups=2, seed=9)
    return root


@pytest.fixture(scope="module")
def offline(job, root):
    steps = ["risd.steps=3", "risd.items_per_step=8", f"run.root={root}", f"data.path={root / 'data'}"]
    assert job("risd", *TEACHER, *SMALL, *steps, "run.name=offline") == 0
    assert job("risd", *TEACHER, *SMALL, *steps, "run.name=online", "risd.mode=online", "evaluation.before=false") == 0
    return root / "offline"


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_both_modes_give_the_same_losses(offline, root):
    one, other = metrics(offline), metrics(root / "online")
    assert len(one) == len(other) == 3 and one[0]["time/tokens_per_s"] == 0 < other[0]["time/tokens_per_s"]
    for a, b in zip(one, other, strict=True):
        for name in ("loss/total", "student/mu_gap", "learner/grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name
    assert len({line["loss/total"] for line in one}) == 3
    assert len(list((root / "labels").iterdir())) == 1  # both runs and the audit share one label set


def test_run_folder_holds_a_student(offline):
    result = json.loads((offline / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["zero-shot", "teacher, reasoning", "risd"] and result[
        "status"
    ] == "SUCCEEDED"
    assert result["rows"][2]["tokens_per_score"] == 1 and result["rows"][1]["tokens_per_score"] > 4
    assert result["teacher_gap"]["pooled"]["items"] == 32 and "nll" in result["rows"][2]["pooled"]
    held = np.load(offline / "predictions.npz")
    assert held["student"].shape == held["teacher"].shape == (8, 4, 9)
    np.testing.assert_allclose(np.exp(held["student"]).sum(-1), 1, atol=1e-5)
    for name in ("judge/model.safetensors", "judge/README.md", "judge/read_scores.py", "report.html", "teacher.json"):
        assert (offline / name).is_file(), name


def test_trackers_hold_the_curves_and_the_students_card(offline):
    run = RunFolder(offline)
    assert tracked.mlflow_curves(run) == tracked.written(run)
    found = tracked.mlflow_run(run)
    cards = tracked.mlflow_client(run).list_artifacts(found.info.run_id, "judge_card")
    assert [card.path for card in cards] == ["judge_card/README.md"]


def test_opd_is_on_policy_and_leaves_a_judge(job, root, offline):
    arguments = [
        *TEACHER,
        *SMALL,
        "opd.steps=2",
        "opd.questions_per_step=8",
        "opd.group_size=2",
        f"run.root={root}",
        f"data.path={root / 'data'}",
    ]
    assert (
        job(
            "opd",
            *arguments,
            f"teacher.path={offline / 'judge'}",
            "judge.path=builtin",
            "run.name=opd",
            "evaluation.before=false",
        )
        == 0
    )
    lines = metrics(root / "opd")
    for line in lines:
        assert line["policy/ratio_max_abs_diff"] < 1e-4 and line["sync/max_abs_diff"] < 5e-5, line
    assert lines[0]["opd/reverse_kl"] != 0  # the teacher is another judge
    result = json.loads((root / "opd" / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["teacher, reasoning", "opd"] and (
        root / "opd" / "judge" / "config.json"
    ).is_file()


def test_audit_reports_and_refuses(job, root, offline, capsys):
    arguments = [
        *TEACHER,
        f"judge.path={offline / 'judge'}",
        f"run.root={root}",
        f"data.path={root / 'data'}",
        "student.threads=1",
        "audit.items=12",
        "audit.highest_frac=0.2",
        "audit.worst=3",
        "audit.bootstrap_resamples=50",
        "audit.split=train",
    ]
    assert job("audit", *arguments, "run.name=audit", "audit.mu_gap_limit=4", "audit.bias_limit=4") == 0
    report = json.loads((root / "audit" / "audit.json").read_text())
    assert (
        report["pool"] == 20
        and report["samples"]["random"]["pooled"]["items"] == 40
        and report["samples"]["highest"]["pooled"]["items"] == 8
    )
    assert len(report["worst"]) == 3 and all((root / "audit" / w["copy"]).is_file() for w in report["worst"])
    capsys.readouterr()
    assert job("audit", *arguments, "run.name=strict", "audit.mu_gap_limit=0.001") == 1
    said = capsys.readouterr()
    assert "beyond the audit's limits" in said.err and "limit 0.001" in (root / "strict" / "audit.md").read_text()
