"""The evaluation job: its switches are overrides; it judges a data set end to end and leaves table, JSON, report and
judgements."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from zr_ray.config.evaluate import EvaluateConfig
from zr_ray.config.loader import load_config
from zr_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_switches_become_overrides():
    overrides = runpy.run_path(str(ROOT / "jobs" / "evaluate.py"), run_name="job")["overrides"]
    words = "--judge /j --samples 1 4 run.seed=3 --data /d --direct --dry-run --config c.yaml --swap"
    got = overrides(words.split())
    assert got[:4] == ["--dry-run", "--config", "c.yaml", "run.seed=3"]
    config = load_config(EvaluateConfig, None, got[3:])
    assert (config.judge.path, str(config.data.path), config.evaluate.mode, config.evaluate.swap) == (
        "/j",
        "/d",
        "direct",
        True,
    )
    assert config.evaluate.samples == (1, 4) and config.run.seed == 3


@pytest.mark.parametrize("samples", ["[]", "[4, 2]", "[2, 2]", "[-1]", "[some]"])
def test_bad_sample_numbers_are_refused(samples):
    with pytest.raises(ConfigError, match="evaluate.samples"):
        load_config(EvaluateConfig, None, [f"evaluate.samples={samples}"])


def test_evaluates_a_data_set(tmp_path, judge_path, ray_cluster, run_job):
    from zr_ray.world.build import write_world

    write_world(tmp_path / "data", train_groups=0, test_groups=6, seed=3)
    arguments = [
        "--judge",
        judge_path,
        "--data",
        tmp_path / "data",
        "--samples",
        "0",
        "1",
        "2",
        "--swap",
        f"run.root={tmp_path}",
        "run.name=e",
        "evaluate.bootstrap_resamples=40",
        "rollout.threads=1",
        "rollout.max_model_len=160",
    ]
    assert run_job("evaluate", *arguments) == 0
    run = tmp_path / "e"
    result = json.loads((run / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == [
        "direct",
        "reasoning, greedy",
        "reasoning, 1 sample",
        "reasoning, mean of 2",
    ]
    assert result["rows"][0]["tokens_per_score"] == 1 and result["rows"][0]["pooled"]["items"] == 24 * 4
    assert result["swap"]["rescored_max_abs_diff"] < 1e-4 and result["noise_ceiling"]["pooled"]["hpa"] > 0.8
    judgements = np.load(run / "judgements.npz")
    assert (
        judgements["direct"].shape == (24, 4, 1, 9)
        and judgements["reasoning"].shape == (24, 4, 2, 9)
        and len(judgements["ids"]) == 24
    )
    mu = (
        np.exp(judgements["direct"][:, :, 0]) / np.exp(judgements["direct"][:, :, 0]).sum(-1, keepdims=True)
    ) @ np.linspace(1, 5, 9)
    assert np.allclose(json.loads((run / "rows.json").read_text())[0]["mu"], mu, atol=1e-3)
    assert (
        "Swapped reasoning traces" in (run / "report.html").read_text()
        and "| direct |" in (run / "table.md").read_text()
    )
