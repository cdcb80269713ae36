"""The jobs around generated data as a user runs them: images by a real (untrained) pipeline, labelled, mixed with rendered ones."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from zr_ray.data.annotations import read_annotations
from zr_ray.data.world.build import write_world
from zr_ray.models.generator_scenes import is_held_out, training_prompts
from zr_ray.models.tiny_generator import GeneratorSizes, build_tiny_generator

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run(job: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(JOBS / job), *map(str, arguments)], capture_output=True, text=True, timeout=200)


def test_generate_label_and_mix(tmp_path):
    channels = 4
    codec = {
        "encoder_weight": torch.zeros(channels, 48, 3, 3), "encoder_bias": torch.zeros(channels),
        "decoder_weight": torch.zeros(48, channels, 3, 3), "decoder_bias": torch.zeros(48),
    }  # fmt: skip
    sizes = GeneratorSizes(width=24, layers=1, heads=2, text_width=32, text_layers=2, latent_channels=channels)
    build_tiny_generator(codec, sizes, seed=0).save_pretrained(tmp_path / "grey")
    line = ("--out", tmp_path / "set", "--train-groups", 3, "--test-groups", 2, "--candidates", 2, "--threads", 1)
    done = run("make_generated.py", "--generator", tmp_path / "grey", *line)
    assert done.returncode == 0, done.stderr
    items = list(read_annotations(tmp_path / "set", decode_images=True))
    assert Counter(item.split for item in items)["test"] == 4 and {item.origin for item in items} == {"generated"}
    assert "10 generated images" in done.stdout
    assert all(set(item.truth.values()) == {1.0} for item in items)  # a generator of grey pictures shows nothing

    write_world(tmp_path / "world", train_groups=2, test_groups=1, seed=1)
    done = run("mix_annotations.py", "--out", tmp_path / "mix", f"rendered={tmp_path / 'world'}", f"generated={tmp_path / 'set'}:train")
    assert done.returncode == 0, done.stderr
    assert {item.origin for item in read_annotations(tmp_path / "mix", split="train")} == {"rendered", "generated"}
    assert {item.origin for item in read_annotations(tmp_path / "mix", split="test")} == {"rendered"}

    done = run("mix_annotations.py", "--out", tmp_path / "mix", f"rendered={tmp_path / 'nowhere'}")
    assert done.returncode == 1 and "mix_annotations:" in done.stderr and "Traceback" not in done.stderr


def test_training_prompts_are_never_held_out():
    prompts = training_prompts(200, seed=3)
    assert len(prompts) == 200 and not any(map(is_held_out, prompts)) and prompts != training_prompts(200, seed=4)
    assert 0.6 < sum(len(prompt.split()) > 3 for prompt in prompts) / 200 < 0.85
