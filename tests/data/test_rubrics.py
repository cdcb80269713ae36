"""Data sets with a rubric of their own: there and back, and what does not fit together is refused in one line."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zr_ray.data.anchors import write_anchor_labels
from zr_ray.data.annotations import read_annotations, write_annotations
from zr_ray.data.labels import LabelSet, label_schema
from zr_ray.data.load import require_judge
from zr_ray.data.mix import mix_annotations
from zr_ray.data.pairs import preference_pairs
from zr_ray.data.preferences import read_preferences
from zr_ray.data.rubrics import read_rubric, write_rubric
from zr_ray.errors import ConfigError, DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER, RUBRIC_FILE, Rubric

OWN = Rubric(("text rendering", "realism"), (0, 1, 2.5))


@pytest.fixture()
def folder(tmp_path):
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def items(folder):
    scores = {"a": {"text rendering": 2.5, "realism": 0.0}, "b": {"text rendering": 1.0, "realism": 0.0}}
    return [AnnotatedImage(n, "g", "train", "p", folder / f"{n}.png", s, truth=s) for n, s in scores.items()]


def line(name, scores):
    return {"id": name, "group": "g", "split": "train", "prompt": "p", "image": f"{name}.png", "scores": scores}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_there_and_back(folder, format):
    file = write_annotations(folder, items(folder), format, OWN)
    assert list(read_annotations(file)) == items(folder) and read_rubric(file) == read_rubric(folder) == OWN
    if format == "parquet":
        assert {f.name for f in pq.read_schema(file).field("scores").type} == set(OWN.dimensions)
    (pair,) = preference_pairs(items(folder))
    assert (pair.dimension, pair.winner_score, pair.loser_score) == ("text rendering", 2.5, 1.0)


def test_a_set_without_the_file_is_the_papers(folder):
    write_annotations(folder, items(folder), rubric=OWN)
    write_rubric(folder, PAPER)
    assert not (folder / RUBRIC_FILE).exists() and read_rubric(folder) == PAPER
    (folder / RUBRIC_FILE).write_text('{"bins": [0, 1]}')
    assert read_rubric(folder) == Rubric(bins=(0, 1))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"aesthetics": 1.0}, "unknown dimension 'aesthetics' in 'scores'; known: text rendering, realism"),
        ({"realism": 3.0}, r"wanted a number in \[0, 2.5\], got 3.0"),
        ({"realism": 2.0}, "wanted a bin of 0.0, 1.0, 2.5, got 2.0"),
    ],
)
def test_records_off_the_rubric_are_refused(folder, scores, message):
    write_rubric(folder, OWN)
    (folder / "annotations.jsonl").write_text(json.dumps(line("a", scores)) + "\n")
    with pytest.raises(DataError, match=message):
        list(read_annotations(folder))


def test_nothing_is_written_off_the_rubric(folder):
    with pytest.raises(DataError, match="got 'text rendering'; write the set with a rubric that has it"):
        write_annotations(folder, items(folder), "parquet")  # Arrow would drop the column without a word
    assert not (folder / "annotations.parquet").exists() and not (folder / RUBRIC_FILE).exists()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"dimension": ["a"]}',
        '{"dimensions": []}',
        '{"dimensions": ["a", "a"]}',
        '{"dimensions": ["pooled"]}',
        '{"dimensions": ["a,b"]}',
        '{"bins": [1]}',
        '{"bins": [2, 1]}',
        '{"bins": ["1", "2"]}',
        '{"bins": [1, NaN]}',
        '{"bins": 3}',
    ],
)
def test_broken_rubrics_are_refused(folder, text):
    (folder / RUBRIC_FILE).write_text(text)
    with pytest.raises(DataError) as raised:
        read_rubric(folder)
    assert RUBRIC_FILE in str(raised.value) and "\n" not in str(raised.value)


def test_a_judge_must_have_the_dimensions_and_the_scale_of_the_data(folder):
    write_annotations(folder, items(folder), rubric=OWN)
    require_judge(folder, Rubric(("layout", "realism", "text rendering"), OWN.bins))
    with pytest.raises(DataError, match="the judge has alignment, realism, aesthetics, plausibility and lacks text"):
        require_judge(folder, PAPER)
    with pytest.raises(DataError, match="scale of 3 bins 0, 1, 2.5, the judge on 9 bins 1, 1.5, ..., 5"):
        require_judge(folder, Rubric(OWN.dimensions))
    require_judge(None, PAPER)
    with pytest.raises(DataError, match="the built-in world has the dimensions"):
        require_judge(None, OWN)


def test_without_the_file_the_dimensions_that_occur_are_wanted(folder):
    (folder / "annotations.jsonl").write_text(json.dumps(line("a", {"realism": 2.0})) + "\n")
    require_judge(folder, Rubric(("realism", "layout")))
    with pytest.raises(DataError, match="lacks realism"):
        require_judge(folder, Rubric(("alignment",)))


def test_preferences_are_in_the_sets_dimensions(folder):
    record = {"group": "g", "split": "train", "prompt": "p", "winner": "a.png", "loser": "b.png"}
    (folder / "preferences.jsonl").write_text(json.dumps(record | {"dimension": "text rendering"}) + "\n")
    with pytest.raises(DataError, match="wanted dimension alignment, realism, aesthetics, plausibility, overall"):
        list(read_preferences(folder))
    write_rubric(folder, OWN)
    assert [p.dimension for p in read_preferences(folder)] == ["text rendering"]


def test_mixed_sets_have_all_dimensions_and_one_scale(folder, tmp_path):
    one, other, third = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    for root, rubric in ((one, OWN), (other, Rubric(("realism", "layout"), OWN.bins)), (third, PAPER)):
        root.mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "a.png")
        write_annotations(
            root, [AnnotatedImage("a", "g", "train", "p", root / "a.png", {"realism": 1.0})], rubric=rubric
        )
    mix_annotations(tmp_path / "mix", {"x": one, "y": other})
    assert read_rubric(tmp_path / "mix") == Rubric(("realism", "text rendering", "layout"), OWN.bins)
    assert len(list(read_annotations(tmp_path / "mix"))) == 2
    with pytest.raises(DataError, match="x has 3 bins 0, 1, 2.5 and z has 9 bins"):
        mix_annotations(tmp_path / "more", {"x": one, "z": third})


def test_anchors_are_the_integers_of_the_scale(folder, tmp_path):
    write_annotations(folder, items(folder), rubric=OWN)
    with pytest.raises(DataError, match="bins drop to integer bins, 2 is none"):
        write_anchor_labels(folder, tmp_path / "anchors")
    rubric = Rubric(OWN.dimensions, (0, 1, 2, 2.5))
    write_annotations(folder, items(folder), rubric=rubric)
    assert write_anchor_labels(folder, tmp_path / "anchors") == 1
    assert [i.scores["text rendering"] for i in read_annotations(tmp_path / "anchors")] == [2.0, 1.0]
    assert read_rubric(tmp_path / "anchors") == rubric


def test_labels_of_a_rubric_there_and_back(tmp_path):
    import pyarrow as pa

    labels, q = LabelSet(tmp_path / "labels", {"format": 1}, OWN), [0.2, 0.3, 0.5]
    row = {"fingerprint": "f", "id": "a", "log_q": {"text rendering": np.log(q).tolist(), "realism": None}}
    counts = {name: {"text rendering": 2, "realism": 0} for name in ("valid", "tokens")}
    labels.append(pa.Table.from_pylist([row | counts | {"worker": "w", "error": None}], label_schema(OWN)))
    label = labels.read()["f"]
    np.testing.assert_allclose(np.exp(label.log_q[0]), q, rtol=1e-6)
    assert label.log_q.shape == (2, 3) and np.isnan(label.log_q[1]).all() and label.valid.tolist() == [2, 0]
    with pytest.raises(ConfigError, match="labels of another origin: bins is"):
        LabelSet(tmp_path / "labels", {"format": 1}, Rubric(OWN.dimensions, (0, 1, 3)))
