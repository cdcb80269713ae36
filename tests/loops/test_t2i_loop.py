"""The text-to-image loop in this process: what a run leaves behind, a resume that repeats it, the watch's stop, the
report."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import JudgeError
from zr_ray.judging.held_out_images import Look
from zr_ray.loops.launch_t2i import T2iTask
from zr_ray.loops.t2i import train
from zr_ray.loops.t2i_fitness import say_fitness
from zr_ray.models.generators.load import generator_folder
from zr_ray.report.t2i_page import format_rows, write_report
from zr_ray.run.folder import RunFolder

TRAINING = ("small red circle", "big blue square", "small white cross", "big green triangle")
HELD_OUT = ("big red circle", "small blue square left of big white cross")


def brightness(images: np.ndarray, prompts) -> dict[str, np.ndarray]:
    """A reward anyone can fool."""
    return {"brightness": images.mean((1, 2, 3)) / 255}


BESIDE = {"every_steps": 2, "watched": 2, "beside": True, "best_of": 4, "bootstrap_resamples": 20, "grid": 2}


def task(root, name, steps, **sections):
    tree = {
        "run": {"root": str(root), "name": name},
        "generator": {"compiled": False, "steps": 2, "micro_batch": 4},
        "prompts": {"held_out": 2},
        "actor": {"warmup_steps": 1, "lr": 1e-3},
        "reward": {"function": f"{__name__}:brightness", "weights": {"brightness": 1.0}},
        "t2i": {"steps": 4, "prompts_per_step": 2, "group_size": 2},
        "held_out": {"every_steps": 2, "watched": 2, "beside": False, "bootstrap_resamples": 20, "grid": 2},
        "checkpoint": {"every_steps": 2},
    }
    config = T2iConfig.model_validate({key: tree.get(key, {}) | sections.get(key, {}) for key in tree | sections})
    folder = root / name
    run = RunFolder.open(folder, config) if folder.exists() else RunFolder.create(root, name, config, "t2i")
    return T2iTask(config, run.path, generator_folder("builtin"), TRAINING, HELD_OUT, None, time.time())


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith(("time/", "actor/memory"))}
        for line in lines
    ]


class Killed(Exception):
    """Stands for a SIGKILL between two steps."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    train({"task": task(root, "whole", 4, watch={"action": "report"}, held_out=BESIDE)})
    return root


def test_a_run_that_was_killed_and_resumed_gives_the_numbers_of_one_that_was_not(whole, monkeypatch):
    from zr_ray.loops.t2i_nft import Nft

    original = Nft.step

    def dying(self, batch, lr):
        if batch.seed[1] == 3:
            raise Killed
        return original(self, batch, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Nft, "step", dying)
        with pytest.raises(Killed):
            train({"task": task(whole, "killed", 4, watch={"action": "report"})})
    train({"task": task(whole, "killed", 4, watch={"action": "report"})})
    assert metrics(whole / "killed") == metrics(whole / "whole") and len(metrics(whole / "whole")) == 4
    one, other = (json.loads((whole / name / "result.json").read_text()) for name in ("killed", "whole"))
    assert one["figures"] == other["figures"]
    assert (whole / "killed" / "looks.jsonl").read_text() == (whole / "whole" / "looks.jsonl").read_text()


def test_a_run_leaves_a_generator_and_a_report(whole):
    folder = whole / "whole"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and result["steps"] == 4 and result["reward_calls"]["failed"] == 0
    assert {"reward/sum", "reward/brightness", "verifier/sum", "verifier/match", "image/row_variance"} <= set(
        result["figures"]
    )
    assert (folder / "generator" / "model_index.json").is_file()
    write_report(RunFolder(folder))
    page = (folder / "report.html").read_text()
    assert "ODE" in page and (folder / "grid.png").is_file() and "verifier sum" in format_rows(result)


def test_the_best_of_more_begins_with_the_images_before_training(whole):
    """Four images of a prompt, the first two from the noise of all looks: never below the best of two."""
    folder = whole / "whole"
    before, many = (Look.load(folder / "held_out" / f"{name}.npz") for name in ("before", "untrained_4_seeds"))
    assert before.images.shape[1] == 2 and many.images.shape[1] == 4
    assert np.abs(many.images[:, :2].astype(int) - before.images).max() <= 1
    assert not (many.images[:, 2:] == many.images[:, :2]).all()
    beside = json.loads((folder / "result.json").read_text())["beside"]
    assert len(beside) == 5
    two, four = (beside[f"untrained, best of {n}"]["reward/sum"]["difference"] for n in (2, 4))
    best = many.figures["reward/sum"].max(1).mean() - before.figures["reward/sum"].mean()
    assert four == pytest.approx(best) and four >= two - 1e-3 > -1e-3


def test_the_watch_stops_a_run_that_is_far_off_and_keeps_the_best_weights(tmp_path):
    """With `far` near zero, any change of an image statistic is an alarm."""
    train({"task": task(tmp_path, "stopped", 4, watch={"far": 1e-9, "patience": 1})})
    result = json.loads((tmp_path / "stopped" / "result.json").read_text())
    assert result["status"] == "STOPPED" and result["steps"] == 2 and result["weights"] == "best of step 2"
    assert "in a row" in result["stopped"]
    train({"task": task(tmp_path, "stopped", 4, watch={"far": 1e-9, "patience": 1})})  # a stopped run stays stopped
    assert len(metrics(tmp_path / "stopped")) == 2


def look(noise: float) -> Look:
    """128 prompts x 2 images whose reward is the verifier's score plus noise; a second dimension without verifier."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, (128, 2))
    reward = 3 + (truth + noise * rng.standard_normal(truth.shape) - 3) / 2
    figures = {"verifier/alignment": truth, "reward/alignment": reward, "reward/brightness": reward}
    return Look(("small red circle",) * 128, np.zeros((128, 2, 1, 1, 3), np.uint8), figures)


def test_a_run_says_what_its_reward_sees_and_refuses_a_blind_one():
    weights = {"alignment": 1.0, "brightness": 1.0}
    config = T2iConfig.model_validate({"reward": {"weights": weights}})
    lines: list[str] = []
    assert say_fitness(look(0.1), config, lines.append) == {"alignment": "fit"}
    assert "reward alignment: fit; orders" in lines[0] and "nothing to compare with" in lines[1]
    with pytest.raises(JudgeError, match=r"blind in alignment.*reward\.blind=accept"):
        say_fitness(look(100.0), config, lines.append)
    accepted = T2iConfig.model_validate({"reward": {"weights": weights, "blind": "accept"}})
    assert say_fitness(look(100.0), accepted, lines.append) == {"alignment": "blind"}
    unweighted = T2iConfig.model_validate({"reward": {"weights": weights | {"alignment": 0.0}}})
    assert say_fitness(look(100.0), unweighted, lines.append) == {}
