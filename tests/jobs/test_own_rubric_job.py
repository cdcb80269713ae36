"""A company's own dimensions and scale as a user runs them: what does not fit is refused before Ray is asked for
anything; what fits trains."""

import json
import re

import pytest
import ray

SMALL = [
    "gdso.steps=1",
    "learner.warmup_steps=0",
    "gdso.pairs_per_step=5",
    "gdso.group_size=2",
    "evaluation.bootstrap_resamples=20",
    "evaluation.samples=0",
    "rollout.threads=1",
    "learner.threads=1",
    "rollout.max_num_seqs=64",
    "rollout.max_model_len=160",
]


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("job", "judge"),
    [
        ("gdso", ["judge.path=builtin"]),
        ("evaluate", ["judge.path=builtin"]),
        ("risd", ["judge.path=builtin", "teacher.path=builtin"]),
        ("audit", ["judge.path=builtin", "teacher.path=builtin"]),
    ],
)
def test_data_that_the_judge_lacks_are_refused_in_one_line(run_job, own_data, tmp_path, capfd, dry, job, judge):
    joined = ray.is_initialized()
    assert run_job(job, *dry, *judge, f"data.path={own_data}", f"run.root={tmp_path}") == 1
    said = capfd.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if str(own_data) in line]
    assert re.search(r"has the dimensions .*text rendering.*the judge has alignment, realism, .*lacks", line), line
    assert ray.is_initialized() == joined and not list(tmp_path.iterdir())


def test_a_teacher_of_another_rubric_is_refused(run_job, own_judge, own_data, tmp_path, capfd):
    asked = ["teacher.path=builtin", f"judge.path={own_judge}", f"data.path={own_data}", f"run.root={tmp_path}"]
    assert run_job("risd", "--dry-run", *asked) == 1
    assert "teacher and student must have the same dimensions" in capfd.readouterr().err


def test_the_plan_of_data_and_judge_that_fit(run_job, own_judge, own_data, tmp_path, capfd):
    asked = [f"judge.path={own_judge}", f"data.path={own_data}", f"run.root={tmp_path}"]
    assert run_job("gdso", "--dry-run", *asked) == 0
    plan = capfd.readouterr().out
    assert re.search(r"labels \('1', .*'7'\) -> tokens", plan) and "107 pairs, 8 test items" in plan


@pytest.mark.slow
def test_gdso_on_five_dimensions_and_seven_bins(ray_cluster, run_job, own_judge, own_data, own_rubric, tmp_path, capfd):
    asked = [f"judge.path={own_judge}", f"data.path={own_data}", f"run.root={tmp_path}", "run.name=own"]
    assert run_job("gdso", *SMALL, *asked) == 0, capfd.readouterr()
    run = tmp_path / "own"
    result = json.loads((run / "result.json").read_text())
    assert result["bins"] == list(own_rubric.bins)
    assert all(list(row["dimensions"]) == list(own_rubric.dimensions) for row in result["rows"])
    examples = json.loads((run / "examples" / "examples.json").read_text())
    assert {e["dimension"] for e in examples} == set(own_rubric.dimensions) and {len(e["q"]) for e in examples} == {7}
    assert "text rendering" in (run / "report.html").read_text()
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["policy/ratio_max_abs_diff"] < 1e-4 and 0 <= line["reward/pointwise"] <= 1
