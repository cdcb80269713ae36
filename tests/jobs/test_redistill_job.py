"""Drift as a user meets it: the audit of what a generator makes finds it and names a command; that command, word for
word, makes a student of the same images and labels, stopped by prompts it does not learn from."""

import json
import shlex

import pytest

from tests.painted_run import painted_run
from zr_ray.data.annotations import read_annotations
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import BUILTIN_JUDGES
from zr_ray.rubric import DIMENSIONS

pytestmark = pytest.mark.slow  # two jobs with their engines
ENGINE = ["rollout.threads=1", "rollout.max_num_seqs=64", "rollout.max_model_len=160", "rollout.cpus=0.5"]
IMAGES = ["images.prompts=10", "images.per_prompt=3", "images.cpus=0.5"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    painted_run(root, "painter", steps=4)
    return root


@pytest.fixture(scope="module")
def audited(ray_cluster, run_job, root):
    """Report of an audit of a student that is far from its teacher."""
    limits = ["audit.items=24", "audit.highest_frac=0.25", "audit.worst=2", "audit.bootstrap_resamples=50"]
    judges = ["judge.path=student_v0", "teacher.path=builtin", "images.of=latest", "audit.mu_gap_limit=0.01"]
    told = [*judges, *IMAGES, *ENGINE, *limits, f"run.root={root}", "run.name=audit", "student.threads=1"]
    assert run_job("audit", *told) == 1  # it is beyond a limit that nothing meets
    return json.loads((root / "audit" / "audit.json").read_text())


def test_the_audit_compares_three_judges_on_the_generators_images(audited, root):
    assert audited["pool"] == 24 and audited["reference"].startswith("verifier")
    pooled = audited["order"]["pooled"]
    assert set(audited["order"]["dimensions"]) == set(DIMENSIONS)
    for pair in ("student/teacher", "student/reference", "teacher/reference"):
        assert pooled[pair]["pairs"] > 10 and 0 <= pooled[pair]["accuracy"] <= 1
    page = (root / "audit" / "audit.md").read_text()
    assert "same-prompt pairs ordered alike" in page and "teacher as reference" in page
    assert audited["redistill"] in page


def test_the_command_it_names_makes_a_student_of_these_images(audited, run_job, root, capsys):
    words = shlex.split(audited["redistill"])
    assert words[:2] == ["python", "jobs/risd.py"]
    small = ["risd.steps=3", "risd.items_per_step=6", "risd.patience=1", "evaluation.every_steps=1"]
    small += ["learner.warmup_steps=1", "learner.threads=1", "learner.cpus=0.5", "evaluation.bootstrap_resamples=50"]
    told = [*words[2:], *small, *ENGINE, "images.cpus=0.5", f"run.root={root}", "run.name=again"]
    assert run_job("risd", *told) == 0
    said = capsys.readouterr().out
    assert "are there:" in said and "on prompts not learned from" in said
    result = json.loads((root / "again" / "result.json").read_text())
    seen = {int(step): share for step, share in result["unseen_pairs"].items()}
    assert min(seen) == 0 and seen[result["best_step"]] == max(seen.values())
    items = list(read_annotations(root / "again" / "data"))
    learned, others = ({i.prompt for i in items if i.split == split} for split in ("train", "test"))
    assert len(learned) == 8 and len(others) == 2 and not learned & others
    assert len(list((root / "images" / "painter").iterdir())) == 1 == len(list((root / "labels").iterdir()))
    start = json.loads((root / "again" / "student.json").read_text())
    assert start["sha256"] == judge_hash(BUILTIN_JUDGES["student_v0"])
    # learning that did no good hands out the start, weight by weight
    assert (judge_hash(root / "again" / "judge") == start["sha256"]) == (result["best_step"] == 0)
