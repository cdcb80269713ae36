"""A running service gets another judge: the probe holds, and sees a judge or scores that are not the folder's."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from zr_ray.errors import DeadlineError, RewardError
from zr_ray.models.identity import judge_hash
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS
from zr_ray.serving.roll import prove, require_version, roll, served_scores, with_judge

APP = "rolling"


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for n, prompt in enumerate(("small red circle", "big blue star", "a green square")):
        path = folder / f"{n}.png"
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        made.append(AnnotatedImage(str(n), str(n), "test", prompt, path, {}))
    return made


@pytest.fixture(scope="module")
def other(judge_path, tmp_path_factory):
    """Another judge: the built-in one with moved weights."""
    folder = tmp_path_factory.mktemp("other") / "judge"
    shutil.copytree(judge_path, folder)
    weights, noise = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    moved = {name: value + 0.01 * torch.randn(value.shape, generator=noise) for name, value in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def service(serve_url, service_config):
    """A service without HTTP on the built-in judge, as a run has one."""
    from ray import serve

    config = service_config(http={"enabled": False}, replica={"start_deadline_s": 300.0})
    roll(config, APP)
    yield config
    serve.delete(APP)


def of_folder(judge, items):
    """[I, D] mu in this process, without a service."""
    from zr_ray.data.images import load_image
    from zr_ray.workers.reward import RewardWorker
    from zr_ray.workers.reward_items import RewardItem

    asked = [RewardItem(load_image(i.image).transpose(2, 0, 1), i.prompt, DIMENSIONS) for i in items]
    return torch.tensor(np.stack([answer.mu for answer in RewardWorker(judge).answer(asked)])).double()


def test_a_service_is_rolled_and_proved(service, judge_path, other, items):
    before, hashes = served_scores(APP, items, DIMENSIONS, 60)
    assert set(hashes) == {judge_hash(judge_path)}
    told = with_judge(service, other)
    here = of_folder(other, items)
    roll(told, APP)
    proof = prove(APP, other, here, items, told, DIMENSIONS)
    assert proof["largest_difference"] < 1e-3 and proof["replies"] == 4
    after, hashes = served_scores(APP, items, DIMENSIONS, 60)
    assert set(hashes) == {judge_hash(other)} and (after - before).abs().max() > 1e-2
    known = {judge_hash(judge_path): 0, judge_hash(other): 1}
    require_version(hashes, known, 1)
    with pytest.raises(RewardError, match="must answer as version 0 of its reward, v1 did"):
        require_version(hashes, known, 0)


def test_a_probe_sees_scores_that_are_not_the_folders_and_a_judge_that_stayed(service, judge_path, other, items):
    told = with_judge(service, other)
    roll(told, APP)
    with pytest.raises(RewardError, match="its scores are 0.1 off"):
        prove(APP, other, of_folder(other, items) + 0.1, items, told, DIMENSIONS)
    hasty = told.model_copy(update={"replica": told.replica.model_copy(update={"start_deadline_s": 8.0})})
    with pytest.raises(DeadlineError, match="must answer as"):
        prove(APP, judge_path, of_folder(judge_path, items), items, hasty, DIMENSIONS)
