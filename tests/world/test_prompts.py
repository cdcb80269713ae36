"""Held-out prompts, halves, and prompts that are almost right."""

import numpy as np

from zr_ray.data.annotations import read_annotations
from zr_ray.world.build import write_world
from zr_ray.world.prompts import all_requests, edited, held_out_prompts, in_half, is_held_out, known_prompts
from zr_ray.world.sampling import sample_known_group, sample_request


def test_known_and_held_out_are_the_whole_world_without_overlap():
    known, held_out = known_prompts(), held_out_prompts()
    everything = [request.prompt for request in all_requests()]
    assert len(everything) == len(set(everything)) == 48 + 5760
    assert set(known) | set(held_out) == set(everything) and not set(known) & set(held_out)
    assert 500 < len(held_out) < 650 and all(len(prompt.split()) > 3 for prompt in held_out)
    rng = np.random.default_rng(0)
    assert {sample_request(rng).prompt for _ in range(300)} <= set(everything)


def test_halves_are_disjoint_and_even():
    known = known_prompts()
    first = [prompt for prompt in known if in_half(prompt, 0)]
    assert 0.45 < len(first) / len(known) < 0.55
    assert all(in_half(prompt, -1) and in_half(prompt, 0) != in_half(prompt, 1) for prompt in known)


def test_an_edit_changes_exactly_one_thing_and_stays_in_the_world():
    rng, everything = np.random.default_rng(1), {request.prompt for request in all_requests()}
    kinds = {"attribute": 0, "swap": 0, "relation": 0}
    for request in [sample_request(rng) for _ in range(400)]:
        other = edited(request, rng)
        assert other != request and other.prompt in everything
        before, after = request.prompt.split(), other.prompt.split()
        if request.second is None:
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        elif (other.first, other.second) == (request.second, request.first):
            kinds["swap"] += 1
        elif other.relation != request.relation:
            assert (other.first, other.second) == (request.first, request.second)
            kinds["relation"] += 1
        else:
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
            kinds["attribute"] += 1
    assert kinds["swap"] > 40 and kinds["relation"] > 40 and kinds["attribute"] > 90


def test_no_training_set_holds_a_held_out_prompt(tmp_path):
    rng = np.random.default_rng(2)
    assert not any(is_held_out(sample_known_group(rng, 1)[0].prompt) for _ in range(200))
    write_world(tmp_path, train_groups=60, test_groups=60, candidates=2, seed=3)
    by_split = {split: {i.prompt for i in read_annotations(tmp_path, split=split)} for split in ("train", "test")}
    assert not any(map(is_held_out, by_split["train"])) and any(map(is_held_out, by_split["test"]))
