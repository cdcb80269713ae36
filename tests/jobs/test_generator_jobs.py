"""The jobs around the generator as a user runs them: images by a real (untrained) pipeline, measured, labeled, mixed,
probed."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest
import torch

from zr_ray.builtin.generator_gate import GATE
from zr_ray.builtin.generator_scenes import is_held_out, training_prompts
from zr_ray.builtin.tiny_generator import GeneratorSizes, build_tiny_generator
from zr_ray.data.annotations import read_annotations
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.build import write_world
from zr_ray.world.probes import PROBES

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def run(job: str, *arguments: object) -> int | None:
    """Exit code of a job, run in this process."""
    return runpy.run_path(str(JOBS / job), run_name="job")["main"](list(map(str, arguments)))


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    """Folder of a generator that answers every prompt with a gray picture."""
    channels = 4
    codec = {
        "encoder_weight": torch.zeros(channels, 48, 3, 3),
        "encoder_bias": torch.zeros(channels),
        "decoder_weight": torch.zeros(48, channels, 3, 3),
        "decoder_bias": torch.zeros(48),
    }
    sizes = GeneratorSizes(width=24, layers=1, heads=2, text_width=32, text_layers=2, latent_channels=channels)
    folder = tmp_path_factory.mktemp("gray")
    build_tiny_generator(codec, sizes, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train_groups=2, test_groups=2, seed=1)
    return folder


def test_generate_label_and_mix(gray, world, tmp_path, capsys):
    line = ("--out", tmp_path / "set", "--train-groups", 3, "--test-groups", 2, "--candidates", 2, "--threads", 1)
    assert run("data/make_generated.py", "--generator", gray, *line) == 0
    items = list(read_annotations(tmp_path / "set", decode_images=True))
    assert Counter(item.split for item in items)["test"] == 4 and {item.origin for item in items} == {"generated"}
    assert "10 generated images" in capsys.readouterr().out
    assert all(set(item.truth.values()) == {1.0} for item in items)  # a gray picture shows nothing

    assert (
        run(
            "data/mix_annotations.py",
            "--out",
            tmp_path / "mix",
            f"rendered={world}",
            f"generated={tmp_path / 'set'}:train",
        )
        == 0
    )
    assert {item.origin for item in read_annotations(tmp_path / "mix", split="train")} == {"rendered", "generated"}
    assert {item.origin for item in read_annotations(tmp_path / "mix", split="test")} == {"rendered"}


def test_the_gate_of_a_gray_generator_is_missed(gray, tmp_path, capsys):
    line = ("--generator", gray, "--prompts", 4, "--steps", 1, "--threads", 1, "--output", tmp_path / "gate")
    assert run("builtin/evaluate_generator.py", *line, "--require-gate") == 2
    result = json.loads((tmp_path / "gate" / "evaluation.json").read_text())
    assert (
        result["figures"]["object_match"],
        result["figures"]["codec_match"],
        result["figures"]["rendered_match"],
    ) == (0, 0, 1)
    assert (
        result["figures"]["seed_distance"] == 0 and set(result["met"]) == set(GATE) and not result["met"]["codec_cost"]
    )
    assert "MISSED" in capsys.readouterr().out and (tmp_path / "gate" / "grid.png").is_file()


def test_probes_and_agreement_of_a_judge(world, judge_path, tmp_path, capsys):
    line = (
        "--judge",
        f"tiny={judge_path}",
        "--data",
        f"world={world}",
        "--count",
        2,
        "--resamples",
        20,
        "--output",
        tmp_path / "probes.json",
    )
    assert run("builtin/probe_judges.py", *line) == 0
    result = json.loads((tmp_path / "probes.json").read_text())
    assert set(result["probes"]) == set(PROBES) and 0 <= result["agreement"]["world"]["tiny"]["pooled"]["hpa"] <= 1
    assert result["probes"]["good scene"]["verifier"] == pytest.approx(dict.fromkeys(DIMENSIONS, 5.0), abs=0.3)
    assert all(1 <= result["probes"][probe]["tiny"][d] <= 5 for probe in PROBES for d in DIMENSIONS)
    assert "HPA on world" in capsys.readouterr().out


def test_the_verifier_table_is_printed_and_written(tmp_path, capsys):
    run("builtin/evaluate_verifier.py", "--images", 3, "--output", tmp_path / "verifier.json")
    table = json.loads((tmp_path / "verifier.json").read_text())["table"]
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert (
        shown["light"].split()
        == [f"{table[strength]['light']:.3f}" for strength in ("clean", "mild", "strong")]
        == ["1.000"] * 3
    )


@pytest.mark.parametrize(
    "job, arguments",
    [
        ("data/mix_annotations.py", ("--out", "mix", "rendered=nowhere")),
        ("data/make_generated.py", ("--out", "set", "--generator", "nowhere")),
        ("builtin/evaluate_generator.py", ("--generator", "nowhere")),
        ("builtin/probe_judges.py", ("--judge", "tiny=nowhere")),
    ],
)
def test_a_folder_that_is_not_there_is_refused_in_one_line(job, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(job, *arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"{Path(job).stem}: ") and "nowhere" in shown and "Traceback" not in shown


def test_training_prompts_are_never_held_out():
    prompts = training_prompts(200, seed=3)
    assert len(prompts) == 200 and not any(map(is_held_out, prompts)) and prompts != training_prompts(200, seed=4)
    assert 0.6 < sum(len(prompt.split()) > 3 for prompt in prompts) / 200 < 0.85
