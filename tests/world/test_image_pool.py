"""Pools: packed readings keep what scores need, shards add up, annotations of a pool are what the verifier says."""

import numpy as np
import pytest

from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world import image_pool
from zr_ray.world.image_pool import PoolRecipe, SamplingShare, load_pool, make_shard, plan_pool
from zr_ray.world.pool_annotations import Share, write_pool_annotations
from zr_ray.world.prompts import is_held_out, known_prompts
from zr_ray.world.render import render
from zr_ray.world.sampling import sample_group
from zr_ray.world.verifier.scores import verify


def rendered(prompts, seeds, how):
    """Stands in for a generator: scenes of any request, and for 2 steps noise."""
    if how.steps == 2:
        return np.stack([np.random.default_rng(s).integers(0, 256, (64, 64, 3), dtype=np.uint8) for s in seeds])
    return np.stack([render(sample_group(np.random.default_rng(seed), 1)[0].scene) for seed in seeds])


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(image_pool, "CACHE", tmp_path / "pools")
    shares = (SamplingShare(8, 0.0, 0.8), SamplingShare(2, 1.5, 0.2))
    return PoolRecipe(tuple(known_prompts()[100:110]), 4, shares, 0, "none", shard_images=16)


@pytest.fixture
def pool(recipe):
    for index in range(recipe.shards):
        make_shard(recipe, index, rendered)
    return load_pool(recipe)


def test_scores_from_the_packed_reading_are_the_verifiers(pool):
    assert len(pool) == 40 and np.bincount(pool.prompt).tolist() == [4] * 10
    for index in range(0, 40, 3):
        prompt = pool.prompts[pool.prompt[index]]
        wanted = verify(np.asarray(pool.images[index]), prompt)
        assert pool.scores[index] == pytest.approx([wanted[d] for d in DIMENSIONS], abs=1e-5)
        assert pool.alignment(index, prompt) == pytest.approx(wanted["alignment"])
    empty = pool.scores[pool.share == 1]
    assert len(empty) and (empty == 1.0).all()


def test_a_pool_is_its_recipe_and_never_half(recipe):
    assert recipe.key != PoolRecipe(recipe.prompts, 4, recipe.shares, 1, "none", 16).key
    prompt, share, seed = plan_pool(recipe)
    assert len(set(seed.tolist())) == 40 and np.bincount(prompt).tolist() == [4] * 10
    make_shard(recipe, 1, rendered)
    with pytest.raises(DataError, match=r"wanted 40 images in .*, got 16"):
        load_pool(recipe)
    assert len(load_pool(recipe, at_least=10)) == 16


def test_annotations_of_a_pool(pool, tmp_path):
    count = write_pool_annotations(tmp_path / "G", {"train": Share(pool, 8, 3, edits=1.0)}, seed=1)
    items = list(read_annotations(tmp_path / "G"))
    assert len(items) == count and {item.origin for item in items} == {"generated"}
    assert not any(is_held_out(item.prompt) for item in items)
    plain = [item for item in items if "edit" not in item.group]
    edits = [item for item in items if "edit" in item.group]
    assert len({item.group for item in plain}) == 8 and len({item.group for item in edits}) >= 6
    for item in plain[::5] + edits[::5]:
        truth = verify(load_image(item.image), item.prompt)
        assert item.truth == pytest.approx({d: truth[d] for d in item.scores}, abs=1e-5)
        assert set(item.reasoning) == set(item.scores)
    assert all(set(item.scores) == {"alignment"} for item in edits)
    prompts = {item.image: item.prompt for item in plain}
    assert all(item.prompt != prompts[item.image] for item in edits)
    with pytest.raises(DataError, match="wanted 11 prompts"):
        write_pool_annotations(tmp_path / "H", {"train": Share(pool, 11, 3)})
