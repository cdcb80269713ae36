"""Chains of a fallible annotator: which words are findings, the stated share of errors, form and scores kept."""

from dataclasses import replace

import numpy as np
import pytest

from zr_ray.data.annotations import read_annotations, write_annotations
from zr_ray.errors import DataError
from zr_ray.world.build import write_world
from zr_ray.world.fallible_chains import AFTER, KINDS, fallible_chain, kind_of, write_fallible_chains

CHAINS = {
    "a small ok blue bad circle ok b big ok red ok square ok relation left ok extra no": 15,
    "a missing b missing relation none extra yes": 1,
    "noise low blur high blocks none": 3,
    "light left shadow none bad float low overlap no": 4,
}
"""Chain -> findings in it, counted by hand: a side that is not there is none."""


def test_every_finding_can_be_wrong_and_nothing_else():
    for chain, count in CHAINS.items():
        made, wrong, findings = fallible_chain(chain, 1.0, np.random.default_rng(0))
        assert wrong == findings == count, chain
        pairs = list(zip(chain.split(), made.split(), strict=True))
        assert sum(a != b for a, b in pairs) == count
        for before, (told, said) in zip(["", *chain.split()], pairs, strict=False):
            kind = kind_of(before, told)
            assert said == told if not kind else said in kind and said != told
        assert fallible_chain(chain, 0.0, np.random.default_rng(0)) == (chain, 0, count)


def test_none_and_left_are_read_by_what_stands_before_them():
    assert kind_of("blur", "none") == AFTER["blur"] and kind_of("float", "none") == AFTER["float"]
    assert kind_of("shadow", "none") == () == kind_of("relation", "none") == kind_of("b", "missing")
    assert kind_of("light", "left") == ("left", "right") != kind_of("relation", "left")
    assert kind_of("shadow", "bad") == () and kind_of("left", "bad") == ("ok", "bad")
    assert len({word for kind in KINDS for word in kind}) == sum(map(len, KINDS))


def test_a_data_set_gets_the_stated_share_of_errors_and_keeps_all_else(tmp_path):
    write_world(tmp_path / "data", train_groups=20, test_groups=2, seed=3)
    wrong, findings = write_fallible_chains(tmp_path / "data", tmp_path / "wrong", 0.2)
    assert findings > 1000 and abs(wrong / findings - 0.2) < 4 * (0.16 / findings) ** 0.5
    before, after = (list(read_annotations(tmp_path / name)) for name in ("data", "wrong"))
    assert [(i.id, i.prompt, i.scores, i.split) for i in before] == [(i.id, i.prompt, i.scores, i.split) for i in after]
    words = [
        (told, said)
        for b, a in zip(before, after, strict=True)
        for d in b.reasoning
        for told, said in zip(b.reasoning[d].split(), a.reasoning[d].split(), strict=True)
    ]
    assert sum(told != said for told, said in words) == wrong
    assert all(b.image.read_bytes() == a.image.read_bytes() for b, a in zip(before, after, strict=True))
    stamp = (tmp_path / "wrong" / "annotations.jsonl").stat().st_mtime_ns
    assert write_fallible_chains(tmp_path / "data", tmp_path / "wrong", 0.2) == (wrong, findings)
    assert (tmp_path / "wrong" / "annotations.jsonl").stat().st_mtime_ns == stamp


def test_data_without_chains_is_refused(tmp_path):
    write_world(tmp_path / "data", train_groups=2, test_groups=1, seed=3)
    write_annotations(tmp_path / "data", [replace(i, reasoning={}) for i in list(read_annotations(tmp_path / "data"))])
    with pytest.raises(DataError, match="wanted reasoning chains"):
        write_fallible_chains(tmp_path / "data", tmp_path / "out", 0.2)
