"""jobs/evaluate_reward.py on a generator and on an annotated set, and jobs/builtin/ship_judge.py with its figures."""

import json
import math

import pytest

from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS
from zr_ray.world import image_pool
from zr_ray.world.build import write_world


@pytest.fixture
def measured(run_job, tmp_path, monkeypatch):
    """Folder of the files of a small measurement of an early student on the built-in generator."""
    monkeypatch.setattr(image_pool, "CACHE", tmp_path / "pools")
    sizes = ["--prompts", 3, "--images", 3, "--steps", 2, "--probes", 2, "--resamples", 50, "--guidance", 0]
    out = tmp_path / "fit"
    code = run_job("evaluate_reward", "--judge", "student_v0", *sizes, "--output", out)
    assert code == 0
    return out


def test_a_generator_is_measured_and_the_judge_ships_with_the_figures(measured, run_job, tmp_path):
    found = json.loads((measured / "fitness-guidance-0.json").read_text())
    assert found["prompts"] == 3 and found["images"] == 3 and set(found["dimensions"]) == set(DIMENSIONS)
    assert set(found["best_of"]) == {"1", "2"} and "noise" in found["probes"] and "good scene" not in found["probes"]
    assert {d["verdict"] for d in found["dimensions"].values()} <= {"fit", "weak", "blind"}
    page = (measured / "fitness-guidance-0.html").read_text()
    assert page.count("<img") == 3 * 4 and "http" not in page.replace("http-equiv", "")

    config = tmp_path / "c.yaml"
    config.write_text("minutes: 1\n")
    about = ["--data", "D", "--recipe", "R", "--hours", "H", "--config", config]
    files = ["--fitness", measured / "fitness-guidance-0.json"]
    out = tmp_path / "shipped"
    judge = BUILTIN_JUDGES["student_v0"]
    run_job("builtin/ship_judge", "--judge", judge, "--kind", "direct", "--out", out, *files, *about)
    card = (out / "README.md").read_text()
    assert "not distilled from a teacher" in card and "| alignment |" in card and "minutes: 1" in card
    assert Student(out).text.format == Student(judge).text.format


def test_an_annotated_set_is_measured_without_a_verifier(run_job, tmp_path):
    write_world(tmp_path / "W", train_groups=1, test_groups=4, candidates=3, seed=7)
    run_job(
        "evaluate_reward",
        "--judge",
        "student_v0",
        "--data",
        tmp_path / "W",
        "--resamples",
        50,
        "--output",
        tmp_path / "fit",
    )
    found = json.loads((tmp_path / "fit" / "fitness-test.json").read_text())
    assert found["prompts"] == 4 and found["probes"] == {}
    assert all(math.isnan(d["both_recognized"]) for d in found["dimensions"].values())


def test_a_judge_that_reasons_is_measured_after_its_traces(run_job, tmp_path, capfd):
    write_world(tmp_path / "W", train_groups=1, test_groups=3, candidates=3, seed=7)
    words = ["--data", tmp_path / "W", "--resamples", 50, "--output", tmp_path / "fit"]
    run_job("evaluate_reward", "--judge", "teacher", "--traces", 2, *words)
    found = json.loads((tmp_path / "fit" / "fitness-test.json").read_text())
    assert found["traces"] == 2 and found["prompts"] == 3
    assert "9 of 9 images reasoned about" in capfd.readouterr().err
    run_job("evaluate_reward", "--judge", "teacher", *words)  # without reasoning it says something else
    direct = json.loads((tmp_path / "fit" / "fitness-test.json").read_text())
    assert direct["dimensions"]["alignment"]["spread"] != found["dimensions"]["alignment"]["spread"]
