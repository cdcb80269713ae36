"""The packed pool that ships, and the default data that mixes it with rendered scenes."""

import numpy as np
import pytest

from zr_ray.config.sections import WorldSection
from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.default_data import write_default_data
from zr_ray.world.packed_pool import GENERATED, pack_pool, unpack_pool
from zr_ray.world.prompts import is_held_out
from zr_ray.world.verifier.scores import verify


@pytest.fixture(scope="module")
def shipped():
    return {split: unpack_pool(GENERATED, split) for split in ("train", "test")}


def test_the_shipped_pool_keeps_training_and_held_out_prompts_apart(shipped):
    assert not any(map(is_held_out, shipped["train"].prompts)) and all(map(is_held_out, shipped["test"].prompts))
    assert len(shipped["train"]) == 960 and len(shipped["test"]) == 400
    assert GENERATED.stat().st_size < 30_000_000


def test_its_scores_are_what_the_verifier_says_of_its_pixels(shipped):
    pool = shipped["test"]
    for index in range(0, 400, 80):
        wanted = verify(np.asarray(pool.images[index]), pool.prompts[pool.prompt[index]])
        assert pool.scores[index] == pytest.approx([wanted[d] for d in DIMENSIONS], abs=1e-5)


def test_packing_loses_nothing(shipped, tmp_path):
    pool = shipped["train"]
    pack_pool(tmp_path / "p.parquet", {"dev": (pool, [3, 8, 9])})
    again = unpack_pool(tmp_path / "p.parquet", "dev")
    assert np.array_equal(again.images, pool.images[[3, 8, 9]]) and np.array_equal(again.scores, pool.scores[[3, 8, 9]])
    assert [again.prompts[i] for i in again.prompt] == [pool.prompts[i] for i in pool.prompt[[3, 8, 9]]]
    with pytest.raises(DataError, match="split train, got none"):
        unpack_pool(tmp_path / "p.parquet", "train")


def test_default_data_mixes_rendered_and_generated(tmp_path):
    world = WorldSection(train_groups=3, test_groups=2, generated_train_groups=4, generated_test_groups=2, seed=5)
    write_default_data(tmp_path / "a", world)
    items = list(read_annotations(tmp_path / "a"))
    count = {(i.split, i.origin) for i in items}
    assert count == {(split, origin) for split in ("train", "test") for origin in ("rendered", "generated")}
    assert sum(i.split == "test" and i.origin == "generated" for i in items) == 8
    assert load_image(items[-1].image).shape == (64, 64, 3)
    write_default_data(tmp_path / "b", world)
    assert [(i.id, i.scores) for i in read_annotations(tmp_path / "b")] == [(i.id, i.scores) for i in items]
    with pytest.raises(DataError, match="wanted 500 prompts"):
        write_default_data(tmp_path / "c", world.model_copy(update={"generated_train_groups": 500}))
