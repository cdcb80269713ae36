"""Generated images as data: the sampler here renders known scenes, so what must be written is known."""

import json
from collections import Counter

import numpy as np
import pytest

from zr_ray.data.annotations import load_image, read_annotations
from zr_ray.data.mix import mix_annotations
from zr_ray.data.pairs import aggregate_scores, preference_pairs
from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.build import write_world
from zr_ray.world.generated import Setting, write_generated
from zr_ray.world.render import render
from zr_ray.world.scene import place
from zr_ray.world.verifier.scores import parse_prompt, verify

PROMPTS = {
    "train": ["small red circle", "big blue square left of small white cross", "big green triangle"] * 3,
    "test": ["big red cross"] * 2,
}
SETTINGS = (Setting(12, 1.5), Setting(1, 0.0))


def scenes_or_noise(prompts, setting, seed):
    """Flawless scenes at 12 steps, noise at 1."""
    if setting.steps == 1:
        return np.random.default_rng(seed).integers(0, 256, (len(prompts), 64, 64, 3), dtype=np.uint8)
    asked = [parse_prompt(prompt) for prompt in prompts]
    return np.stack(
        [
            render(place(a.first, a.second, None, a.relation, light="left", seed=seed % 97 + i))
            for i, a in enumerate(asked)
        ]
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated")
    assert write_generated(root, PROMPTS, scenes_or_noise, candidates=4, seed=3, settings=SETTINGS) == 44
    return root, list(read_annotations(root, decode_images=True))


def test_truth_is_what_the_verifier_measures_and_annotators_scatter_around_it(generated):
    _, items = generated
    assert {item.origin for item in items} == {"generated"} and all(
        set(item.truth) == set(DIMENSIONS) for item in items
    )
    assert all(item.truth == verify(load_image(item.image), item.prompt) for item in items[:8])
    truths = Counter(item.truth["alignment"] for item in items)
    assert set(truths) == {1.0, 5.0} and min(truths.values()) >= 10  # noise holds no object, a flawless scene has all
    for item in items:
        for dimension, score in item.scores.items():
            assert abs(aggregate_scores(score) - item.truth[dimension]) <= 2.0
    errors = [aggregate_scores(s) - item.truth[d] for item in items for d, s in item.scores.items()]
    assert 0.1 < np.std(errors) < 1.0


def test_train_items_have_labels_and_test_items_five_annotators(generated):
    _, items = generated
    assert all(isinstance(s, float) for item in items if item.split == "train" for s in item.scores.values())
    assert all(len(item.scores[d]) == 5 for item in items if item.split == "test" for d in DIMENSIONS)
    assert Counter(item.split for item in items)["test"] == 8
    pairs = preference_pairs([item for item in items if item.split == "train"])
    assert pairs and np.mean([p.winner.truth[p.dimension] >= p.loser.truth[p.dimension] for p in pairs]) > 0.9


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(generated, tmp_path):
    root, _ = generated
    for name, seed in (("same", 3), ("other", 4)):
        write_generated(tmp_path / name, PROMPTS, scenes_or_noise, candidates=4, seed=seed, settings=SETTINGS)
    lines = [(folder / "annotations.jsonl").read_bytes() for folder in (root, tmp_path / "same", tmp_path / "other")]
    assert lines[0] == lines[1] != lines[2]
    image = "images/train/000001-2.png"
    assert (root / image).read_bytes() == (tmp_path / "same" / image).read_bytes()
    assert json.loads((root / "world.json").read_text())["simulated"] is True


@pytest.mark.parametrize(
    "prompts, candidates",
    [({"train": []}, 4), ({"training": ["small red circle"]}, 4), ({"train": ["small red circle"]}, 1)],
)
def test_what_cannot_be_written_is_refused(tmp_path, prompts, candidates):
    with pytest.raises(DataError, match="correct them"):
        write_generated(tmp_path, prompts, scenes_or_noise, candidates=candidates)


def test_a_mix_holds_every_record_of_its_sources_under_names_of_their_own(generated, tmp_path):
    root, items = generated
    write_world(tmp_path / "world", train_groups=2, test_groups=1, seed=5)
    counts = mix_annotations(
        tmp_path / "mix", {"rendered": tmp_path / "world", "generated": root}, splits={"generated": ("train",)}
    )
    mixed = list(read_annotations(tmp_path / "mix", decode_images=True))
    train = [item for item in items if item.split == "train"]
    rendered = list(read_annotations(tmp_path / "world"))
    assert counts == {"rendered": len(rendered), "generated": len(train)} and len(mixed) == len(rendered) + len(train)
    assert Counter(item.origin for item in mixed) == {"rendered": len(rendered), "generated": len(train)}
    for before, after in zip([*rendered, *train], mixed, strict=True):
        assert (after.scores, after.truth, after.prompt, after.reasoning) == (
            before.scores,
            before.truth,
            before.prompt,
            before.reasoning,
        )
        assert after.id.endswith("/" + before.id) and after.image.read_bytes() == before.image.read_bytes()
    same = mix_annotations(tmp_path / "twice", {"a": root, "b": root})  # equal ids do not meet
    assert same == {"a": len(items), "b": len(items)}


def test_a_mix_of_nothing_or_over_itself_is_refused(generated, tmp_path):
    root, _ = generated
    with pytest.raises(DataError, match="got none"):
        mix_annotations(tmp_path, {"generated": root}, splits={"generated": ("dev",)})
    with pytest.raises(DataError, match="overwritten"):
        mix_annotations(root, {"generated": root})
    with pytest.raises(DataError, match="letters"):
        mix_annotations(tmp_path, {"a/b": root})
