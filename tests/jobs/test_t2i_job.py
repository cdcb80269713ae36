"""Text-to-image post-training as a user runs it: diffusion actors, a reward service of the job's own, both families."""

import json

import pytest

from tests.run import tracked
from zr_ray.run.folder import RunFolder

pytestmark = pytest.mark.slow  # three jobs with Ray Train and Serve
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


@pytest.mark.parametrize(("algorithm", "workers"), [("nft", 2), ("nft", 1), ("flowbp", 1)])
def test_a_run_trains_with_the_served_reward_and_leaves_nothing_running(ray_cluster, run_job, root, algorithm, workers):
    from ray import serve

    name = f"{algorithm}-{workers}"
    told = [*SMALL, f"run.root={root}", f"run.name={name}", f"t2i.algorithm={algorithm}", f"actor.workers={workers}"]
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


def test_dry_run_and_refusals_ask_ray_for_nothing(run_job, root, capsys):
    assert run_job("t2i", *SMALL, "--dry-run", f"run.root={root}") == 0
    assert "ZImagePipeline" in capsys.readouterr().out
    assert run_job("t2i", *SMALL, "generator.path=/nowhere", f"run.root={root}") == 1
    assert "without model_index.json" in capsys.readouterr().err
