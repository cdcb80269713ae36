"""The blind page: nothing in it tells the sides apart, votes come back to the right generator, foreign files are
refused."""

import json
import re

import numpy as np
import pytest

from zr_ray.errors import DataError
from zr_ray.report.gsb_page import VOTES_FORMAT, read_votes, summarize_votes, write_page

PROMPTS = [f"prompt {i} </script>" for i in range(20)]


@pytest.fixture()
def study(tmp_path):
    before = np.zeros((20, 8, 8, 3), np.uint8)
    return write_page(tmp_path, PROMPTS, before, before + 200, seed=7)


def pairs_of(page):
    return json.loads(re.search(r"const study = (.*);", page.read_text())[1].replace("\\u003c", "<"))["pairs"]


def voted(tmp_path, key, name, how, skip=()):
    held = json.loads(key.read_text())
    votes = {pair: how(told["after"]) for n, (pair, told) in enumerate(held["pairs"].items()) if n not in skip}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"format": VOTES_FORMAT, "study": held["study"], "rater": name, "votes": votes}))
    return path


def test_the_page_is_blind_and_whole(study):
    page, key = study
    pairs, held = pairs_of(page), json.loads(key.read_text())["pairs"]
    assert sorted(pair["prompt"] for pair in pairs) == sorted(PROMPTS) and [p["prompt"] for p in pairs] != PROMPTS
    assert {told["after"] for told in held.values()} == {"left", "right"}
    text = page.read_text()
    assert "after" not in text.replace("afterwards", "") and '"seed"' not in text
    assert text.count("</script>") == 1  # a prompt cannot end the script
    white = {pair["id"]: "left" if pair["left"] != pairs[0]["left"] else "x" for pair in pairs}
    assert set(white) == set(held)


def test_votes_come_back_to_the_right_generator(study, tmp_path):
    _, key = study
    other = {"left": "right", "right": "left"}
    fans = [voted(tmp_path, key, f"fan{n}", lambda side: side) for n in range(2)]
    made = summarize_votes(*read_votes(key, fans))
    assert made["gsb"] == 1 and made["raters"] == 2 and made["low"] == made["high"] == 1
    critic = voted(tmp_path, key, "critic", lambda side: other[side], skip=(0,))
    made = summarize_votes(*read_votes(key, [fans[0], critic]))
    assert made["each_rater"] == [1, -1] and made["gsb"] == pytest.approx(1 / 39) and made["alpha"] < 0
    same = voted(tmp_path, key, "same", lambda side: "same")
    assert summarize_votes(*read_votes(key, [same]))["same"] == 1


def test_foreign_files_are_refused(study, tmp_path):
    _, key = study
    good = json.loads(voted(tmp_path, key, "good", lambda side: side).read_text())
    for change, said in (
        ({"study": "other"}, "another page"),
        ({"format": "x"}, "another page"),
        ({"votes": {"nobody": "left"}}, "cannot give"),
        ({"votes": {next(iter(good["votes"])): "best"}}, "cannot give"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match=said):
            read_votes(key, [path])
    path.write_text("[]")
    with pytest.raises(DataError, match="no file of votes"):
        read_votes(key, [path])
