"""The timed ways of judging give the same distributions, and the benchmark runs as a command."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from zr_ray.judging.speed import _one_forward, _student_transformers, scenes, speed_table
from zr_ray.rubric import DIMENSIONS

ROOT = Path(__file__).resolve().parents[2]


def test_both_transformers_ways_say_the_same():
    args = argparse.Namespace(student="builtin", threads=1, gpus=0, batch=4)
    images, prompts = scenes(6, seed=1)
    assert len(set(map(len, (p.split() for p in prompts)))) > 1  # questions of different lengths: padding is used
    (one, _), (each, _) = _one_forward(args)(images, prompts), _student_transformers(args)(images, prompts)
    assert one.shape == (6, len(DIMENSIONS), 9)
    torch.testing.assert_close(one, each, atol=1e-5, rtol=0)


def test_turns_are_timed_in_a_process_of_their_own(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "jobs" / "bench" / "judge.py"),
        "--parts",
        "student-one-forward",
        "--images",
        "4",
        "--turns",
        "2",
        "--out",
        str(tmp_path / "b.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "b.json").read_text())
    own = figures["student-one-forward"]
    assert (
        len(own["turns_s"]) == 2
        and abs(own["images_per_s"] - 4 / min(own["turns_s"])) < 1e-6
        and "all dimensions in one forward" in done.stdout
    )


def test_ratios():
    rates = {"teacher": 10.0, "student-vllm": 50.0, "student-transformers": 80.0, "student-one-forward": 240.0}
    figures = {part: {"images_per_s": r, "turns_s": [1.0], "tokens_per_score": 1.0} for part, r in rates.items()}
    text = speed_table(figures | {"settings": {"images": 1, "threads": 1, "gpus": 0, "batch": 1, "dimensions": 4}})
    assert "(c) / (a) = 24.0" in text and "(c) / best (b) = 3.00" in text and "best (b) / (a) = 8.0" in text
