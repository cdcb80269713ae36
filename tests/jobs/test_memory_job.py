"""The main job with what saves memory, on two ranks; and with a judge whose outputs reach no score."""

import json
import shutil
from pathlib import Path

import pytest

from zr_ray.models.judge_text import judge_folder

SMALL = [
    "gdso.steps=3", "gdso.pairs_per_step=8", "gdso.group_size=2", "gdso.reference_refresh_steps=2",
    "data.world.train_groups=16", "data.world.test_groups=4", "evaluation.every_steps=0", "evaluation.before=false",
    "evaluation.bootstrap_resamples=50", "checkpoint.every_steps=3", "learner.warmup_steps=0", "rollout.threads=1",
    "learner.threads=1", "rollout.max_num_seqs=64", "rollout.cpus=0.5", "learner.cpus=0.5",
]  # fmt: skip


@pytest.mark.slow
def test_two_ranks_of_zero_3_with_lora_broadcast_what_they_compute(ray_cluster, run_job, tmp_path, capfd):
    """Weights are sharded, merged while they are gathered, and every push is proved by checksum and probe. Through the
    object store: test_real_architecture_jobs.py."""
    code = run_job(
        "gdso", *SMALL, f"run.root={tmp_path}", "run.name=lora", "learner.workers=2", "learner.zero_stage=3",
        "weights.transport=broadcast",
        "learner.lora_rank=4", "learner.lora_alpha=8", "learner.lr=5e-3", "learner.gradient_checkpointing=true",
    )  # fmt: skip
    said = capfd.readouterr()
    assert code == 0, said.out + said.err
    steps = [json.loads(line) for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3 and all(step["sync/max_abs_diff"] < 1e-5 for step in steps)
    kl = [step["policy/kl"] for step in steps]
    assert abs(kl[0]) < 1e-6 and kl[1] > 1e-6, "the reference adapter stays where it was"
    assert abs(kl[2]) < 1e-6, "refreshed before the third step"
    assert "max_model_len" in said.out or (tmp_path / "lora" / "judge" / "model.safetensors").is_file()


@pytest.mark.slow
def test_outputs_without_a_score_stop_the_run_as_failed(ray_cluster, run_job, tmp_path, capfd):
    """A judge that never writes the marker it is asked for: shown, advised, stopped before anything is trained."""
    judge = shutil.copytree(judge_folder("builtin"), tmp_path / "judge")
    file = judge / "scoring_format.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"marker": told["marker"].replace("score", "green")}))
    cut = ["rollout.max_new_tokens=2", f"judge.path={judge}"]
    arguments = [*SMALL, f"run.root={tmp_path}", "run.name=cut", *cut]
    assert run_job("gdso", *arguments) == 1
    said = capfd.readouterr()
    assert "none of 32 outputs has a score, nothing is trained on" in said.out
    assert "were cut at rollout.max_new_tokens=2: raise it" in said.out + said.err
    assert said.err.strip().splitlines()[-1].startswith("error: step 2: no output had a score in 2 steps in a row")
    result = json.loads(Path(tmp_path / "cut" / "result.json").read_text())
    assert result["status"] == "FAILED" and "rows" not in result
