"""Text-to-image post-training as a user runs it: diffusion actors, a reward service of the job's own, both families."""

import json
import re

import pytest

from tests.clip import write_tiny_clip
from tests.run import tracked
from zr_ray.run.folder import RunFolder

pytestmark = pytest.mark.slow  # four jobs with Ray Train and Serve
SMALL = [
    "generator.compiled=false",
    "generator.steps=3",
    "generator.micro_batch=4",
    "prompts.held_out=4",
    "held_out.watched=2",
    "held_out.every_steps=1",
    "held_out.beside=false",
    "held_out.bootstrap_resamples=20",
    "held_out.grid=4",
    "actor.warmup_steps=1",
    "actor.cpus=0.5",
    "reward.cpus=0.5",
    "t2i.prompts_per_step=2",
    "t2i.group_size=2",
    "t2i.steps=2",
    "checkpoint.every_steps=2",
    "watch.action=report",
    "run.trackers=[tensorboard,mlflow]",
]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("workers", [2, 1])
def test_a_run_trains_with_the_served_reward_and_leaves_nothing_running(ray_cluster, run_job, root, workers):
    from ray import serve

    name = f"nft-{workers}"
    told = [*SMALL, f"run.root={root}", f"run.name={name}", f"actor.workers={workers}"]
    assert run_job("t2i", *told) == 0
    result = json.loads((root / name / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and result["reward_calls"]["failed"] == 0
    lines = metrics(root / name)
    assert len(lines) == 2 and all(line["reward/failed"] == 0 and line["actor/grad_norm"] > 0 for line in lines)
    assert all(1 <= line["reward/alignment"] <= 5 for line in lines)
    assert tracked.mlflow_curves(RunFolder(root / name)) == tracked.written(RunFolder(root / name))
    for file in ("report.html", "grid.png", "generator/model_index.json"):
        assert (root / name / file).is_file(), file
    assert f"reward-{name}" not in serve.status().applications


def test_the_number_of_actors_changes_no_image(root):
    """The same prompts, noise and noise levels whoever trains on them: in the first step one actor sees what two do."""
    one, two = metrics(root / "nft-1"), metrics(root / "nft-2")
    assert one[0]["reward/total"] == pytest.approx(two[0]["reward/total"], rel=1e-4)
    assert one[0]["actor/grad_norm"] == pytest.approx(two[0]["actor/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("algorithm", ["nft", "flowbp"])
def test_a_run_with_several_reward_sources(ray_cluster, run_job, root, algorithm, tmp_path):
    """A judge, a CLIP-family scorer and, where scores are enough, a function that leaves some images unscored: each a
    deployment of the job's own service; the gradient family balances them. Names reach metrics, table and report."""
    from ray import serve

    clip = write_tiny_clip(tmp_path / "clip", side=64, longest=64)
    sources = [
        {"name": "student", "judge": "student", "cpus": 0.2},
        {"name": "pick", "clip": str(clip), "weights": {"logit": 0.5}, "cpus": 0.2},
    ]
    more = ["reward.balance=true"]
    if algorithm == "nft":
        more = ["reward.aggregation=gdpo"]
        function = {"name": "light", "function": "tests.workers.scorers:first_unknown", "weights": {"mean": 0.0}}
        sources.append(function | {"cpus": 0.2})
    name = f"sources-{algorithm}"
    told = [x for x in SMALL if not x.startswith(("reward.", "run."))] + [f"t2i.algorithm={algorithm}", *more]
    told += ["t2i.prompts_per_step=4", f"run.root={root}", f"run.name={name}", f"reward.sources={json.dumps(sources)}"]
    assert run_job("t2i", *told) == 0
    result, lines = json.loads((root / name / "result.json").read_text()), metrics(root / name)
    assert result["status"] == "SUCCEEDED" and len(lines) == 2
    assert all(line["actor/grad_norm"] > 0 and 1 <= line["reward/student.alignment"] <= 5 for line in lines)
    assert all(abs(line["reward/pick.logit"]) > 1e-3 and line["reward/failed/pick"] == 0 for line in lines)
    assert "reward/pick.logit" in result["figures"] and result["reward_weights"]["pick.logit"] == 0.5
    if algorithm == "nft":
        failed = sum(line["reward/failed/light"] for line in lines)
        assert failed == sum(line["reward/failed"] for line in lines) > 0
        assert "light answered nan" in (root / name / "progress.log").read_text()
    else:
        assert all(0 < line["gradient/largest_share"] < 1 for line in lines)
    assert (root / name / "generator/model_index.json").is_file() and (root / name / "grid.png").is_file()
    page = (root / name / "report.html").read_text()
    assert "Reward source pick" in page and re.search(r"<t[dh][^>]*>pick\.logit", page)
    assert f"reward-{name}" not in serve.status().applications


def test_dry_run_and_refusals_ask_ray_for_nothing(run_job, root, capsys):
    assert run_job("t2i", *SMALL, "--dry-run", f"run.root={root}") == 0
    assert "ZImagePipeline" in capsys.readouterr().out
    assert run_job("t2i", *SMALL, "generator.path=/nowhere", f"run.root={root}") == 1
    assert "without model_index.json" in capsys.readouterr().err
