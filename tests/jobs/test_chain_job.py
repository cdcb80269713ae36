"""Teacher, student, fitness, generator in one job: what each stage is given, what is refused, a run that goes on after
a stage failed."""

import json
import re

import pytest

from zr_ray.config.chain import STAGES

GDSO = ["gdso.steps=1", "gdso.pairs_per_step=4", "gdso.group_size=2", "evaluation.bootstrap_resamples=20"]
GDSO += ["evaluation.samples=0", "rollout.threads=1", "rollout.cpus=0.5", "learner.threads=1", "learner.cpus=0.5"]
GDSO += [
    "rollout.max_num_seqs=64",
    "learner.warmup_steps=0",
    "rollout.max_model_len=160",
    "data.world.train_groups=6",
    "data.world.test_groups=4",
]
RISD = ["judge.path=small", "risd.steps=2", "risd.items_per_step=4", "evaluation.bootstrap_resamples=20"]
RISD += ["rollout.threads=1", "rollout.cpus=0.5", "learner.threads=1", "learner.cpus=0.5", "learner.warmup_steps=0"]
RISD += ["rollout.max_num_seqs=64", "rollout.max_model_len=160"]
T2I = ["generator.compiled=false", "generator.steps=2", "generator.micro_batch=4", "prompts.held_out=4"]
T2I += ["held_out.watched=2", "held_out.every_steps=0", "held_out.beside=false", "held_out.bootstrap_resamples=20"]
T2I += ["held_out.grid=2", "actor.warmup_steps=0", "actor.cpus=0.5", "reward.cpus=0.5", "t2i.prompts_per_step=2"]
T2I += ["t2i.group_size=2", "t2i.steps=1", "watch.action=report", "reward.blind=accept"]
FITNESS = ["--guidance", "0", "--prompts", "4", "--images", "2", "--steps", "2", "--probes", "0", "--resamples", "20"]


def told(root, **more):
    sections = {"gdso": GDSO, "risd": RISD, "t2i": T2I} | more
    words = [f"{name}.overrides={json.dumps(list(given))}" for name, given in sections.items()]
    return [*words, f"evaluate_reward.arguments={json.dumps(FITNESS)}", f"run.root={root}", "run.name=chain"]


def test_a_dry_run_shows_what_each_stage_is_given(run_job, tmp_path, capsys):
    assert run_job("chain", "--dry-run", *told(tmp_path)) == 0
    said = capsys.readouterr().out
    lines = {
        name: re.search(rf"^# {name}: (.*)$", said, re.M)[1] for name in ("gdso", "risd", "evaluate_reward", "t2i")
    }
    assert "CHAIN/gdso/judge" in re.search(r"teacher\.path=(\S+)", lines["risd"])[1]
    assert "CHAIN/gdso/data" in re.search(r"data\.path=(\S+)", lines["risd"])[1]
    assert "CHAIN/risd/judge" in re.search(r"reward\.judge=(\S+)", lines["t2i"])[1]
    assert "CHAIN/risd/judge" in re.search(r"--judge (\S+)", lines["evaluate_reward"])[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (['chain.stages=["t2i", "gdso"]'], r"in this order"),
        (['chain.stages=["risd"]'], r"needs chain\.teacher"),
        (['chain.stages=["t2i"]'], r"need chain\.judge"),
        (['evaluate_reward.arguments=["--judge", "x"]'], r"gives --judge"),
        (['t2i.overrides=["t2i.algoritm=nft"]'], r"t2i\.algoritm"),
    ],
)
def test_a_chain_that_cannot_work_is_refused_before_anything_starts(run_job, tmp_path, capsys, words, wanted):
    assert run_job("chain", *words, f"run.root={tmp_path}") == 1
    assert re.search(wanted, capsys.readouterr().err) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_chain_fails_at_a_stage_and_goes_on_from_there(ray_cluster, run_job, tmp_path, capfd):
    """The first attempt ends at t2i, whose generator is no folder; the second repeats none of the stages before it."""
    folder = tmp_path / "chain"
    assert run_job("chain", *told(tmp_path), 'chain.stages=["gdso", "risd", "evaluate_reward"]') == 0
    assert json.loads((folder / "result.json").read_text())["status"] == "SUCCEEDED"
    times = {name: (folder / name).stat().st_mtime_ns for name in STAGES[:3]}
    other = told(tmp_path, gdso=[*GDSO, "gdso.group_size=3"])
    assert run_job("chain", *other, "--resume", str(folder)) == 1
    assert "gdso.group_size" in capfd.readouterr().err
    assert run_job("chain", *told(tmp_path), "--resume", str(folder)) == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert "stage 3 of 4, evaluate_reward: finished before" in capfd.readouterr().out
    assert (folder / "t2i" / "generator" / "model_index.json").is_file()
    page = (folder / "report.html").read_text()
    assert all(f'href="{name}/' in page for name in STAGES)
