"""Pairs without gaps: round trip, one test per way a record can break, and which losses may have them."""

import json

import pytest
import torch
from PIL import Image

from zr_ray.data.annotations import write_annotations
from zr_ray.data.preferences import (
    PAIR_LOSSES,
    SCORE_LOSSES,
    Preference,
    read_preferences,
    require_scores,
    usable_losses,
    write_preferences,
)
from zr_ray.errors import ConfigError, DataError
from zr_ray.functional import gdso, rank
from zr_ray.records import AnnotatedImage


def picture(path):
    Image.new("RGB", (2, 2)).save(path)
    return path


def record(**changes) -> dict:
    raw = {
        "group": "g",
        "split": "train",
        "prompt": "a cat",
        "winner": "a.png",
        "loser": "b.png",
        "dimension": "overall",
    }
    return {name: value for name, value in (raw | changes).items() if value is not ...}


def written(folder, *records):
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
    (folder / "preferences.jsonl").write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n"
    )
    return folder


def test_round_trip_is_exact(tmp_path):
    a, b, c = (picture(tmp_path / f"{name}.png") for name in "abc")
    before = [
        Preference("g", "train", "un chat é", a, b, "overall", (12, 7), "hpdv3"),
        Preference("g", "train", "un chat é", b, a, "overall", None, "hpdv3"),  # somebody else chose the other way
        Preference("h", "test", "a dog", c, a, "aesthetics", (2.5, 2.5)),
    ]
    file = write_preferences(tmp_path, before)
    assert list(read_preferences(tmp_path)) == list(read_preferences(file)) == before
    assert list(read_preferences(tmp_path, split="test")) == before[2:]
    assert '"votes": [12, 7]' in file.read_text()
    with pytest.raises(DataError, match=r"split 'dev', got none \(records: train 2, dev 0, test 1\)"):
        list(read_preferences(tmp_path, split="dev"))
    with pytest.raises(DataError, match="wanted a split of train, dev, test, got 'val'"):
        list(read_preferences(tmp_path, split="val"))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record(loser=...), ["missing loser"]),
        (record(score=3.0), ["unknown field 'score'"]),
        (record(prompt=" "), ["non-empty string in 'prompt'"]),
        (record(split="val"), ["split train, dev, test", "'val'"]),
        (record(dimension="beauty"), ["dimension alignment", "overall", "'beauty'"]),
        (record(winner="z.png"), ["winner", "z.png", "there is none"]),
        (record(loser="../b.png"), ["loser", "inside", "../b.png"]),
        (record(loser="./a.png"), ["two different images", "'a.png'"]),
        (record(votes=[3]), ["votes [for the winner, for the loser]", "[3]"]),
        (record(votes=[0, 0]), ["at least one in all"]),
        (record(votes=[2, True]), ["votes", "True"]),
        (record(votes=[1, -1]), ["votes", "-1"]),
        (record(votes=[float("inf"), 1]), ["votes", "inf"]),
        (record(votes=[3, 7]), ["at least as many votes for the winner", "swap"]),
        (record(prompt="a dog"), ["one prompt and one split per group", "'a cat' in 'train' at line 1", "'a dog'"]),
        (record(split="test"), ["one prompt and one split per group", "'test' here"]),
        ("{broken", ["one JSON object"]),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path, bad, words):
    folder = written(tmp_path, record(), "", bad)
    with pytest.raises(DataError) as error:
        list(read_preferences(folder))
    message = str(error.value)
    assert message.startswith(f"{folder / 'preferences.jsonl'}: line 3: ") and "\n" not in message, message
    assert all(word in message for word in words), message


def test_writing_refuses_an_image_outside_and_keeps_the_old_file(tmp_path):
    (tmp_path / "set").mkdir()
    folder = written(tmp_path / "set", record())
    outside = Preference("g", "train", "a cat", picture(tmp_path / "z.png"), folder / "a.png", "overall")
    with pytest.raises(DataError, match=r"group 'g': wanted images inside .*, got .*z.png"):
        write_preferences(folder, [outside])
    assert len(list(read_preferences(folder))) == 1 and not list(folder.glob(".*"))
    with pytest.raises(DataError, match="wanted a file of preferences, there is none"):
        list(read_preferences(tmp_path))


def test_losses_that_need_scores_are_refused(tmp_path):
    folder = written(tmp_path, record())
    assert usable_losses(folder) == PAIR_LOSSES == usable_losses(folder / "preferences.jsonl")
    for loss in PAIR_LOSSES:
        require_scores(folder, loss)
    for loss, equation in {
        "pointwise_loss": "Eq. 8",
        "pairwise_loss": "Eq. 11",
        "gdso_reward": "Eqs. 7 and 10",
    }.items():
        with pytest.raises(DataError) as error:
            require_scores(folder, loss)
        message = str(error.value)
        assert all(
            words in message for words in (f"{loss} needs scores", equation, "bradley_terry_nll", "preferences.jsonl")
        ), message
        assert "\n" not in message
    with pytest.raises(ConfigError, match="got 'dpo'"):
        require_scores(folder, "dpo")


def test_scores_serve_every_loss(tmp_path):
    folder = written(tmp_path, record())
    write_annotations(folder, [AnnotatedImage("a", "g", "train", "a cat", folder / "a.png", {"realism": 3.0})])
    for loss in (*SCORE_LOSSES, *PAIR_LOSSES):
        require_scores(folder, loss)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="got none of them"):
        require_scores(tmp_path / "empty", "pointwise_loss")


def test_the_named_losses_exist_and_the_pair_losses_want_no_scores(tmp_path):
    """A preference alone is enough for every loss of PAIR_LOSSES: two distributions in, a finite loss and a gradient
    out."""
    assert all(callable(getattr(gdso, name)) for name in SCORE_LOSSES)
    bins = torch.arange(1, 5.5, 0.5)
    logits = torch.zeros(2, 9, requires_grad=True)
    winner, loser = logits.log_softmax(-1)
    arguments = {
        "win_nll": (winner, loser),
        "thurstone_nll": (winner, loser, bins),
        "bradley_terry_nll": (winner.exp() @ bins, loser.exp() @ bins),
    }
    assert set(arguments) == set(PAIR_LOSSES)
    for name, given in arguments.items():
        loss = getattr(rank, name)(*given)
        assert loss.item() == pytest.approx(0.693147, abs=1e-5)  # log 2: both the same
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient[0] @ bins < 0 < gradient[1] @ bins  # up for the winner, down for the loser
