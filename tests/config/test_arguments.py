"""Command-line arguments are refused as configuration keys are, in one line and before anything is loaded."""

import argparse
import importlib.util
from pathlib import Path

import pytest

from zr_ray.config.arguments import fraction, number, seed, whole

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (whole(1), {"1": 1, "12": 12}, ("0", "-1", "1.5", "one", "", "nan"), "whole number, at least 1"),
        (whole(0, 7), {"0": 0, "7": 7}, ("8", "-1"), "whole number, from 0 to 7"),
        (seed, {"0": 0, "2147483647": 2**31 - 1}, ("-1", "2147483648"), "from 0 to 2147483647"),
        (number(0, above=True), {"0.5": 0.5}, ("0", "-1", "nan", "inf", "x"), "number, above 0"),
        (fraction, {"0": 0.0, "1": 1.0, ".25": 0.25}, ("1.01", "-0.1", "nan"), "from 0 to 1"),
    ],
)
def test_limits(kind, good, bad, words):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a .*{words}, got {text!r}"):
            kind(text)


def job(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, JOBS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("builtin/evaluate_generator.py", ["--steps", "0"], "--steps: must be a whole number, at least 1, got '0'"),
        ("builtin/evaluate_generator.py", ["--seed", "-1"], "--seed: must be a whole number, from 0 to 2147483647"),
        ("builtin/evaluate_generator.py", ["--prompts", "0"], "--prompts: must be a whole number, at least 2"),
        ("builtin/evaluate_generator.py", ["--guidance", "nan"], "--guidance: must be a number, at least 0, got 'nan'"),
        ("builtin/evaluate_verifier.py", ["--images", "0"], "--images: must be a whole number, at least 1"),
        (
            "data/make_generated.py",
            ["--out", "x", "--candidates", "1"],
            "--candidates: must be a whole number, at least 2",
        ),
    ],
)
def test_a_job_refuses_an_argument_in_one_line(name, arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        job(name)(arguments)
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and words in shown and "Traceback" not in shown
