"""Labeling with a real vLLM teacher through Ray Data: killed workers and drivers lose and duplicate nothing."""

import hashlib
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from zr_ray.config.risd import LabelSection
from zr_ray.config.workers import RolloutSection
from zr_ray.data.images import load_image
from zr_ray.data.labels import LabelSet, fingerprints
from zr_ray.errors import ConfigError, DataError
from zr_ray.judging.ask import generate
from zr_ray.judging.label import label_items, label_provenance, teacher_distributions, teacher_requests
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage, Judgement
from zr_ray.rubric import DIMENSIONS, PAPER, SCORE_BINS

ROLLOUT = RolloutSection(threads=1, max_model_len=160, max_num_seqs=64)
SECTION = LabelSection(traces=2, batch_items=4)


@pytest.fixture(scope="module")
def items(world_items, tmp_path_factory):
    """Fifteen images, one of them twice under two names, and one file that is no image."""
    broken = tmp_path_factory.mktemp("broken") / "broken.png"
    broken.write_bytes(b"not an image")
    twin = AnnotatedImage("twin", "g", "train", world_items[3].prompt, world_items[3].image, {})
    return [*world_items[:15], twin, AnnotatedImage("broken", "g", "train", "a small red circle", broken, {})]


@pytest.fixture(scope="module")
def provenance(judge_path):
    return label_provenance(judge_path, JudgeText(judge_path), ROLLOUT, SECTION)


class DriverDies(Exception):
    pass


@pytest.fixture(scope="module")
def labeled(ray_cluster, judge_path, items, provenance, tmp_path_factory):
    """(labels, what is known, first part as the first driver left it): the driver dies after its first part; the next
    one's worker is killed in mid-run."""
    labels = LabelSet(tmp_path_factory.mktemp("labels"), provenance, PAPER)

    def dies(line):
        if line.startswith("labeled"):
            raise DriverDies

    with pytest.raises(DriverDies):
        label_items(items, labels, judge_path, ROLLOUT, SECTION, dies)
    assert len(labels.parts()) == 1
    first = labels.parts()[0].read_bytes()
    killed = []

    def kills(line):
        if line.startswith("labeled") and not killed:
            killed.append(int(rows(labels)[-1]["worker"].split(":")[1]))
            os.kill(killed[0], signal.SIGKILL)

    known = label_items(items, labels, judge_path, ROLLOUT, SECTION, kills)
    assert killed
    return labels, known, first


def rows(labels):
    return [row for part in labels.parts() for row in pq.read_table(part).to_pylist()]


def test_every_item_once_with_its_distribution(labeled, items):
    labels, known, _ = labeled
    names = fingerprints(items)
    assert sorted(row["fingerprint"] for row in rows(labels)) == sorted(set(names)) == sorted(known)
    assert len(set(names)) == 16 and names[3] == names[15]
    assert (
        "wanted an image in one of the formats" in known[names[16]].error
        and np.isnan(known[names[16]].log_q).all()
        and known[names[16]].valid.sum() == 0
    )
    for name in names[:15]:
        label = known[name]
        assert label.error is None and (label.tokens > 0).all() and ((0 <= label.valid) & (label.valid <= 2)).all()
        for d in range(len(DIMENSIONS)):
            total = np.exp(label.log_q[d].astype(np.float64)).sum()
            assert abs(total - 1) < 1e-5 if label.valid[d] else np.isnan(total)


def test_a_dead_driver_and_a_dead_worker_lose_and_duplicate_nothing(labeled, fleet, judge_path, items):
    """The labels are those of one engine that is asked once, without Ray Data and without deaths."""
    labels, known, first = labeled
    assert labels.parts()[0].read_bytes() == first
    assert len({row["worker"] for row in rows(labels)}) == 3  # the first run's, the killed one, its successor
    names = fingerprints(items)[:15]
    asked = [(name, item.prompt, load_image(item.image)) for name, item in zip(names, items, strict=False)]
    requests = teacher_requests(JudgeText(judge_path), asked, SECTION.seed)
    log_q, valid, tokens = teacher_distributions(
        generate(fleet.workers, requests, SECTION.traces, 1.0, 120, "labels"), PAPER
    )
    for i, name in enumerate(names):
        assert (valid[i].numpy() == known[name].valid).all() and (tokens[i].numpy() == known[name].tokens).all()
        np.testing.assert_allclose(known[name].log_q, log_q[i], atol=1e-5)


def test_a_complete_set_starts_nothing(labeled, items, tmp_path):
    labels, known, _ = labeled
    again = label_items(items[::-1], labels, tmp_path / "no teacher", None, SECTION)  # a pipeline would fail on these
    assert sorted(again) == sorted(known)


def test_another_origin_and_a_second_writer_are_refused(provenance, tmp_path):
    labels = LabelSet(tmp_path, provenance, PAPER)
    with pytest.raises(ConfigError, match="holds labels of another origin: sampling"):
        LabelSet(tmp_path, provenance | {"sampling": provenance["sampling"] | {"traces": 3}}, PAPER)
    with (
        labels.locked(),
        pytest.raises(ConfigError, match="another run is labeling"),
        LabelSet(tmp_path, provenance, PAPER).locked(),
    ):
        pass


def test_a_part_that_was_copied_is_noticed(labeled, provenance, tmp_path):
    labels = LabelSet(tmp_path, provenance, PAPER)
    for name in ("part-000000.parquet", "part-000001.parquet"):
        (tmp_path / name).write_bytes(labeled[0].parts()[0].read_bytes())
    with pytest.raises(DataError, match="labeled twice"):
        labels.read()
    (tmp_path / "part-000001.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="part-000001"):
        labels.read()


def test_label_is_the_mean_of_well_formed_traces():
    k = len(SCORE_BINS)
    q = torch.stack([torch.linspace(1, 2, k), torch.linspace(3, 1, k)]).softmax(-1)

    def judgement(sample, index, values):
        return Judgement(
            "x", sample, np.zeros(3 + sample, np.int32), np.zeros(3 + sample, np.float32), index, values, 0
        )

    def trace(m):
        return judgement(m, 2, q[m].log().numpy() - 0.7)  # full-vocabulary log-probs: mass outside the bins cancels

    groups = [
        [trace(0), trace(1)],
        [trace(0), judgement(1, None, None)],
        [judgement(0, None, None)] * 2,
        [trace(1), trace(1)],
    ]
    log_q, valid, tokens = teacher_distributions(groups, PAPER)
    assert valid.tolist() == [[2, 1, 0, 2]] and tokens.tolist() == [[7, 7, 6, 8]]
    torch.testing.assert_close(log_q[0, 0].exp(), q.mean(0))
    torch.testing.assert_close(log_q[0, 1].exp(), q[0])
    assert log_q[0, 2].isnan().all()
    torch.testing.assert_close(log_q[0, 3].exp(), q[1])


def test_seeds_follow_the_content_not_the_order(judge_path):
    text = JudgeText(judge_path)
    image = np.zeros((64, 64, 3), np.uint8)
    a, b = ("a" * 32, "a small red circle", image), ("b" * 32, "a large blue square", image)
    one, other = teacher_requests(text, [a, b], 3), teacher_requests(text, [b, a], 3)
    assert [r.seed for r in one[:4]] == [r.seed for r in other[4:]] and len({r.seed for r in one}) == 8
    assert {r.seed for r in one}.isdisjoint(r.seed for r in teacher_requests(text, [a, b], 4))


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    item = AnnotatedImage("a", "g", "train", "a cat", path, {})
    (first,) = fingerprints([item])
    assert first == hashlib.sha256(b"a cat\0one").hexdigest()[:32]  # what label sets on disk are named by
    os.utime(path, ns=(0, 5))
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 6))
    assert fingerprints([item]) == [hashlib.sha256(b"a cat\0two").hexdigest()[:32]]
    path.write_bytes(b"six")
    os.utime(path, ns=(0, 6))  # the same size and time: not read
    assert fingerprints([item]) == [hashlib.sha256(b"a cat\0two").hexdigest()[:32]]
    path.unlink()
    with pytest.raises(DataError, match=r"item 'a': image .*a.png cannot be read"):
        fingerprints([item])
