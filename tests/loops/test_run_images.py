"""Images of a text-to-image run as data: which prompts, what is written, and that they are the run's generator's."""

import numpy as np
import pytest
import torch

from tests.painted_run import paint_on, painted_run
from zr_ray.config.images import ImagesSection
from zr_ray.config.t2i import T2iConfig
from zr_ray.data.annotations import read_annotations
from zr_ray.data.checks import UNSCORED
from zr_ray.data.images import load_image
from zr_ray.errors import CheckpointError
from zr_ray.loops.run_images import chosen_prompts, find_generator_run, pool_parts, run_images, write_images
from zr_ray.models.generators.load import generator_folder
from zr_ray.run.folder import RunFolder
from zr_ray.workers.image_maker import MADE, ImageMaker
from zr_ray.world.verifier.scores import verify


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """(root, run folder, worker) of a text-to-image run after its first checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    return root, *painted_run(root, "painter")


def test_prompts_never_change_their_split_and_others_come_with_other_steps():
    prompts = [f"p{i}" for i in range(50)]
    c = ImagesSection(prompts=20, held_out_frac=0.2)
    first, later = chosen_prompts(prompts, c, 4), chosen_prompts(prompts, c, 8)
    assert len(first["train"]) == 16 and len(first["test"]) == 4
    assert first == chosen_prompts(prompts, c, 4) != later
    for one in (first, later):
        assert set(one["test"]) <= set(prompts[:10]) and set(one["train"]) <= set(prompts[10:])
    few = chosen_prompts(["a", "b"], c, 0)
    assert few == {"train": ["b"], "test": ["a"]}
    with pytest.raises(CheckpointError, match="at least 2 training prompts"):
        chosen_prompts(["a"], c, 0)


def test_images_carry_the_verifiers_scores_where_it_can_read_the_prompts(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    rows = [("train", "small red circle", 0), ("train", "small red circle", 1), ("test", "big blue square", 0)]
    assert write_images(tmp_path / "world", rows, images, "step4") == 3
    read = list(read_annotations(tmp_path / "world"))
    assert [(i.split, i.prompt, i.origin) for i in read] == [(s, p, "generated") for s, p, _ in rows]
    assert read[0].group == read[1].group != read[2].group
    for item, image in zip(read, images, strict=True):
        assert np.array_equal(load_image(item.image), image)
        assert item.truth == pytest.approx(verify(image, item.prompt))
    assert read[2].scores == pytest.approx(read[2].truth)
    foreign = [(split, f"a cat on {split} tracks", n) for split, _, n in rows]
    write_images(tmp_path / "foreign", foreign, images, "step4")
    assert all(i.origin == UNSCORED and not i.scores and not i.truth for i in read_annotations(tmp_path / "foreign"))


def test_the_newest_run_is_found_and_others_are_refused(run_of, tmp_path):
    root, _, _ = run_of
    found = find_generator_run("latest", root)
    assert found.path.name == "painter" and found.step == 4 == find_generator_run("painter", root).step
    assert len(set(found.prompts)) == len(found.prompts) > 500
    with pytest.raises(CheckpointError, match="must name a run of jobs/t2i.py"):
        find_generator_run("nobody", root)
    with pytest.raises(CheckpointError, match="needs a text-to-image run"):
        find_generator_run("latest", tmp_path)
    early = T2iConfig.model_validate({"run": {"root": tmp_path, "name": "early"}})
    RunFolder.start(early, "t2i")
    with pytest.raises(CheckpointError, match="has none yet; wait for one"):
        find_generator_run("early", tmp_path)


def test_a_maker_paints_with_the_runs_averaged_weights(run_of):
    root, _, worker = run_of
    run = find_generator_run("painter", root)
    maker = ImageMaker(generator_folder("builtin"), run.config.generator, run.config.actor, run.checkpoint)
    assert maker.describe() == "average"
    prompts, seeds = ["small red circle"] * 5, [(0, 4, 7, n) for n in range(5)]
    made = maker.make(prompts, seeds)
    noise = worker.noise([(MADE, *seed) for seed in seeds[:4]])

    def paint(weights):
        with worker.weights.use(weights):
            clean = worker.sample(worker.encode(prompts[:4]), noise).clean
            return (worker.decode(clean) * 255).round().to(torch.uint8).movedim(1, -1).numpy()

    assert np.abs(made[:4].astype(int) - paint("average")).max() <= 1
    assert np.abs(made[:4].astype(int) - paint("reference")).max() > 20
    assert np.array_equal(maker.make(prompts[4:], seeds[4:])[0], made[4])  # whoever it is made with


@pytest.mark.slow
def test_a_checkpoints_images_are_made_once_and_the_pool_grows(ray_cluster, run_of):
    root, folder_of_run, worker = run_of
    run, c = find_generator_run("painter", root), ImagesSection(prompts=5, per_prompt=2, workers=2, cpus=0.5)
    folder = run_images(run, c, root, "test")
    items = list(read_annotations(folder))
    assert len(items) == 10 and {i.split for i in items} == {"train", "test"}
    assert len({i.image.read_bytes() for i in items}) == 10
    stamp = (folder / "annotations.jsonl").stat().st_mtime_ns
    assert run_images(run, c, root, "test") == folder
    assert (folder / "annotations.jsonl").stat().st_mtime_ns == stamp
    paint_on(folder_of_run, worker, 8)
    later = run_images(find_generator_run("painter", root), c, root, "test2")
    assert list(pool_parts(run, root).values()) == [folder, later]
    assert not {i.id for i in items} & {i.id for i in read_annotations(later)}
