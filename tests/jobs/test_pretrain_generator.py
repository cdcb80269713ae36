"""The pre-training job as a user runs it: it writes what it promises, and goes on after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "compiled=false", "codec.scenes=64", "codec.steps=2", "optimiser.batch=2", "model.width=24", "model.heads=2", "model.layers=1",
    "flow.map_layer=0", "cadence.checkpoint_min=0.02", "cadence.metrics_steps=1", "cadence.grid_steps=1", "cadence.grid_min=0.05",
]  # fmt: skip


def command(output: Path, minutes: float, *overrides: str) -> list[str]:
    config = ROOT / "jobs/configs/generator_tiny.yaml"
    line = [sys.executable, str(ROOT / "jobs/pretrain_generator.py"), "--config", str(config), "--minutes", str(minutes), "--device", "cpu"]
    return [*line, "--output", str(output), "--threads", "1", *TINY, *overrides]


@pytest.mark.timeout(300)
def test_goes_on_after_a_kill_and_writes_a_loadable_pipeline(tmp_path):
    job = subprocess.Popen(command(tmp_path, 60), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline = time.monotonic() + 150
    while not (tmp_path / "generator" / "model_index.json").exists():
        assert time.monotonic() < deadline and job.poll() is None, job.communicate()[0]
        time.sleep(0.2)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    done = subprocess.run(command(tmp_path, 0.06), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss/velocity" in line]
    assert steps == sorted(set(steps)) and steps[0] == 1
    assert list((tmp_path / "grids").glob("step_*.png")) and list((tmp_path / "tensorboard").iterdir())
    assert not list(tmp_path.glob("*.partial"))
    from zr_ray.models.tiny_generator import generate, load_generator

    images = generate(load_generator(tmp_path / "generator"), ["small red circle"], seed=0, steps=2, guidance_scale=1.0)
    assert images.shape == (1, 64, 64, 3)


@pytest.mark.timeout(120)
def test_an_unknown_key_is_refused_in_one_line(tmp_path):
    done = subprocess.run(command(tmp_path, 1, "optimiser.learningrate=1"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "did you mean optimiser.learning_rate?" in done.stderr and "Traceback" not in done.stderr
