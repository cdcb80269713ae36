"""The pre-training job as a user runs it: it writes what it promises, and goes on after kill -9."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs/builtin/pretrain_generator.py"
TINY = [
    "compiled=false",
    "codec.scenes=64",
    "codec.steps=2",
    "optimizer.batch=2",
    "model.width=24",
    "model.heads=2",
    "model.layers=1",
    "flow.map_layer=0",
    "cadence.checkpoint_min=0.005",
    "cadence.metrics_steps=1",
    "cadence.grid_steps=1",
    "cadence.grid_min=0.01",
]


def arguments(output: Path, minutes: float, *overrides: str) -> list[str]:
    config = ROOT / "jobs/configs/generator_tiny.yaml"
    line = [
        "--config",
        str(config),
        "--minutes",
        str(minutes),
        "--device",
        "cpu",
        "--output",
        str(output),
        "--threads",
        "1",
    ]
    return [*line, *TINY, *overrides]


@pytest.fixture(scope="module")
def main():
    """The job's main function, to be called in this process."""
    return runpy.run_path(str(JOB), run_name="job")["main"]


@pytest.mark.timeout(600)
def test_goes_on_after_a_kill_and_writes_a_loadable_pipeline(main, tmp_path, capsys):
    command = [sys.executable, str(JOB), *arguments(tmp_path, 60)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # its errors are pytest's
    deadline = time.monotonic() + 400
    try:
        while not (tmp_path / "generator" / "model_index.json").exists():
            assert time.monotonic() < deadline and job.poll() is None, (
                "the job wrote no pipeline within 400 s, or ended"
            )
            time.sleep(0.05)
    finally:
        job.kill()
        job.wait()
    killed = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    assert main(arguments(tmp_path, killed[-1]["trained_s"] / 60 + 0.005)) == 0
    assert "continuing after step" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss/velocity" in line]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > killed[-1]["step"]
    assert list((tmp_path / "grids").glob("step_*.png")) and list((tmp_path / "tensorboard").iterdir())
    assert not list(tmp_path.glob("*.partial"))
    from zr_ray.builtin.tiny_generator import generate, load_generator

    images = generate(load_generator(tmp_path / "generator"), ["small red circle"], seed=0, steps=2, guidance_scale=1.0)
    assert images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("optimizer.learningrate=1", "did you mean optimizer.learning_rate?"),
        ("flow.map_layer=1", "must be below model.layers (1), got 1"),
        ("model.width=30", "a multiple of twice the heads (4), got 30"),
        ("model.text_width=48", "multiple of 32"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(main, tmp_path, capsys, override, wanted):
    assert main(arguments(tmp_path, 1, override)) == 1
    shown = capsys.readouterr().err
    assert wanted in shown and len(shown.splitlines()) == 1
