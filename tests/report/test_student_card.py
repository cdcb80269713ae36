"""A student folder is complete on its own: its card's snippet gives the student's distribution in plain transformers
and plain vLLM."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from zr_ray.config.loader import dump_yaml
from zr_ray.config.risd import RisdConfig
from zr_ray.loops.held_out_taught import compared
from zr_ray.models.student import Student
from zr_ray.report.student_card import SNIPPET_FILE, write_student_card
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.run.folder import RunFolder
from zr_ray.startup.torchvision_shim import child_environment


@pytest.fixture(scope="module")
def folder(judge_path, world_items, tmp_path_factory):
    """A made run with the built-in judge as its student, and the card that its numbers give."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "made")
    shutil.copytree(judge_path, run.judge)
    run.write_text("config.resolved.yaml", dump_yaml(RisdConfig()))
    run.write_json("teacher.json", {"folder": "/a/teacher", "sha256": "ab" * 32})
    log_q = torch.randn(8, 4, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1).double()
    agreement = {"hpa": 0.751, "hpa_ci": [0.7, 0.8], "margin_hpa": 0.8, "plcc": None, "srcc": 0.5, "nll": 1.9}
    row = {
        "method": "risd",
        "pooled": agreement,
        "dimensions": dict.fromkeys(DIMENSIONS, agreement),
        "tokens_per_score": 1.0,
    }
    gap = compared(log_q, log_q.roll(1, 0), world_items[:8], PAPER, 20, 0)
    run.write_json(
        "result.json",
        {
            "job": "risd",
            "run_id": "made",
            "status": "SUCCEEDED",
            "wall_s": 1.0,
            "rows": [row],
            "teacher_gap": gap,
            "distillation": {"items": 8},
        },
    )
    write_student_card(run, run.path)
    return run.judge


@pytest.fixture(scope="module")
def case(folder, tmp_path_factory):
    """(image file, prompt, dimension, q of the student's own forward)."""
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("image") / "x.png"
    Image.fromarray(pixels).save(path)
    prompt = "a large blue square left of a small red circle"
    with torch.no_grad():
        log_q = Student(folder)(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, [prompt]).log_q[0]
    return path, prompt, "plausibility", log_q[DIMENSIONS.index("plausibility")].exp().tolist()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_snippet_gives_the_students_distribution(engine, folder, case):
    path, prompt, dimension, expected = case
    environment = (
        os.environ
        | child_environment()
        | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    )
    command = [sys.executable, str(folder / SNIPPET_FILE), engine, str(path), prompt, dimension]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=path.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(answer["q"], expected, atol=1e-5)
    assert max(expected) - min(expected) > 0.01  # not a uniform distribution that anything would match


def test_the_card_of_a_stopped_run_says_which_weights_it_has(folder):
    run = RunFolder(folder.parent)
    stopped = run.read_result() | {"steps": 80, "best_step": 40, "unseen_pairs": {"0": 0.6, "40": 0.7}}
    before = (folder / "README.md").read_text()
    run.write_json("result.json", stopped)
    card = write_student_card(run, run.path).read_text()
    assert "steps: 80 of at most 200, stopped by prompts not learned from, the weights after 40" in card
    assert "steps: 200, each of 48 images" in before
    run.write_json("result.json", {k: v for k, v in stopped.items() if k not in ("best_step", "unseen_pairs", "steps")})
    assert write_student_card(run, run.path).read_text() == before


def test_the_card_tells_what_must_be_told(folder):
    card = (folder / "README.md").read_text()
    for part in (
        "ab" * 32,
        "75.1 [70.0, 80.0]",
        "8 training images",
        "1 sampled reasoning trace(s)",
        "Human scores of the training images are not used",
        "turned over",
        "jobs/audit.py",
        SNIPPET_FILE,
        "items_per_step: 48",
    ):
        assert part in card, part
    assert (folder / SNIPPET_FILE).read_text() in card
