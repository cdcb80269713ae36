"""Shared fixtures: the built-in judge, a few world items, one local Ray cluster and one real vLLM engine for the whole
session."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # otherwise it depends on a token file in HOME
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
)  # a process more per training, four seconds of processor time; no test preempts
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With several test processes: a file stays in one, and all files that share the engine, or the Serve instance, in
    the same one."""
    shared = {item.path: name for name in ("fleet", "serve_url") for item in items if name in item.fixturenames}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(shared.get(item.path, item.path.stem)))


@pytest.fixture(scope="session")
def judge_path():
    """Folder of the built-in judge."""
    from zr_ray.models.judge_text import judge_folder

    return judge_folder("builtin")


@pytest.fixture(scope="session")
def world_items(tmp_path_factory):
    """Training items of a small simulated world."""
    from zr_ray.data.load import load_split
    from zr_ray.world.build import write_world

    root = tmp_path_factory.mktemp("world")
    write_world(root, train_groups=12, test_groups=4, seed=5)
    return load_split(root, "train")


@pytest.fixture(scope="session")
def own_rubric():
    """Five dimensions, two of them not the paper's, on seven bins from 0 to 3."""
    from zr_ray.rubric import Rubric

    dimensions = ("alignment", "text rendering", "realism", "aesthetics", "layout")
    return Rubric(dimensions, (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0))


@pytest.fixture(scope="session")
def own_judge(judge_path, own_rubric, tmp_path_factory):
    """The built-in judge's weights, asked by `own_rubric`."""
    from zr_ray.rubric import FORMAT_FILE, ScoringFormat

    folder = tmp_path_factory.mktemp("own") / "judge"
    folder.mkdir()
    for file in judge_path.iterdir():
        if file.is_file() and file.name != FORMAT_FILE:
            (folder / file.name).symlink_to(file)
    questions = {d: f"{d} {{prompt}}" for d in own_rubric.dimensions}
    axes = {"dimensions": own_rubric.dimensions, "bins": own_rubric.bins}
    ScoringFormat(marker="score", system="", questions=questions, **axes).save(folder)
    return folder


@pytest.fixture(scope="session")
def own_data(own_rubric, tmp_path_factory):
    """A data set of `own_rubric`: the images and prompts of a small simulated world, scores made up."""
    from zr_ray.data.annotations import read_annotations, write_annotations
    from zr_ray.world.build import write_world

    folder, rng = tmp_path_factory.mktemp("own") / "data", np.random.default_rng(3)
    write_world(folder, train_groups=4, test_groups=2, seed=6)

    def scored(item):
        drawn = rng.integers(0, 7, (len(own_rubric.dimensions), 5))
        own = [tuple(own_rubric.bins[k] for k in row) for row in drawn]
        own = [row if item.split == "test" else row[0] for row in own]
        return replace(item, scores=dict(zip(own_rubric.dimensions, own, strict=True)), truth={}, reasoning={})

    write_annotations(folder, [scored(item) for item in read_annotations(folder)], rubric=own_rubric)
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A private Ray cluster of six logical CPUs, as its address; all tests share it, jobs in processes of their own
    too."""
    import ray

    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False, namespace="test")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def job_environment(ray_cluster):
    """Environment of a job that joins the tests' cluster."""
    root = Path(__file__).resolve().parents[1]
    return os.environ | {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(root)}


@pytest.fixture(scope="session")
def rollout_config():
    """One small fp32 engine with a thread of its own."""
    from zr_ray.config.workers import RolloutSection

    return RolloutSection(threads=1, max_model_len=160, max_num_seqs=64, restarts=9)  # tests kill it


@pytest.fixture(scope="session")
def fleet(ray_cluster, judge_path, rollout_config):
    """One real vLLM actor with the built-in judge."""
    from zr_ray.workers.rollout import rollout_fleet

    with rollout_fleet("test", judge_path, rollout_config) as started:
        yield started


@pytest.fixture()
def noise_image():
    """[64, 64, 3] uint8."""
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
