"""The blind page: nothing in it tells the sides apart, votes come back to the right generator, foreign files are
refused."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.gsb import main
from zr_ray.errors import DataError
from zr_ray.report.gsb_page import FORMAT, read_votes, summarize_votes, write_page

PROMPTS = [f"prompt {i} </script>" for i in range(20)]
BEFORE = np.zeros((20, 8, 8, 3), np.uint8)


@pytest.fixture()
def study(tmp_path):
    return write_page(tmp_path, PROMPTS, BEFORE, BEFORE + 200, seed=7)


def shown(page):
    return json.loads(re.search(r'id="study">(.*?)</script>', page.read_text())[1])


def voted(tmp_path, key, name, how, skip=(), questions=("overall",)):
    held = json.loads(key.read_text())
    votes = {
        pair: {q: how(told["after"]) for q in questions}
        for n, (pair, told) in enumerate(held["pairs"].items())
        if n not in skip
    }
    told = {"format": FORMAT, "study": held["study"], "session": name, "rater": name, "votes": votes}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(told))
    return path


def other(side):
    return {"left": "right", "right": "left"}[side]


def test_the_page_is_blind_and_whole(study):
    page, key = study
    pairs, held = shown(page)["items"], json.loads(key.read_text())["pairs"]
    assert sorted(pair["prompt"] for pair in pairs) == sorted(PROMPTS) and [p["prompt"] for p in pairs] != PROMPTS
    assert all(set(pair) == {"id", "prompt", "left", "right"} for pair in pairs), "no place, no seed, no source"
    assert {told["after"] for told in held.values()} == {"left", "right"}
    assert page.read_text().count("</script>") == 2, "a prompt cannot end the script"
    for pair in pairs:  # the key file is right about every pair, by its pixels
        pixels = {
            side: Image.open(io.BytesIO(base64.b64decode(pair[side].partition(",")[2]))) for side in ("left", "right")
        }
        assert np.asarray(pixels[held[pair["id"]]["after"]]).min() == 200, "exact pixels"


def test_the_seed_is_drawn_and_repeats(tmp_path):
    pages = [
        write_page(tmp_path / str(n), PROMPTS, BEFORE, BEFORE + 200, seed=s) for n, s in enumerate((None, None, 7, 7))
    ]
    keys = [json.loads(key.read_text()) for _, key in pages]
    assert keys[0]["seed"] != keys[1]["seed"] and set(keys[0]["pairs"]).isdisjoint(keys[1]["pairs"])
    assert min(keys[0]["seed"], keys[1]["seed"]) >= 2**32, "none that can be tried out (fails once in 2^31)"
    assert keys[2] == keys[3]
    changed = write_page(tmp_path / "other", PROMPTS, BEFORE, BEFORE + 199, seed=7)
    assert json.loads(changed[1].read_text())["study"] != keys[2]["study"], "other images, other study"


def test_votes_come_back_to_the_right_generator(study, tmp_path):
    _, key = study
    fans = [voted(tmp_path, key, f"fan{n}", lambda side: side) for n in range(2)]
    made = summarize_votes(*read_votes(key, fans))["overall"]
    assert made["gsb"] == 1 and made["raters"] == 2 and made["low"] == made["high"] == 1
    critic = voted(tmp_path, key, "critic", other, skip=(0,))
    made = summarize_votes(*read_votes(key, [fans[0], critic]))["overall"]
    assert made["each_rater"] == [1, -1] and made["gsb"] == pytest.approx(1 / 39) and made["alpha"] < 0
    same = voted(tmp_path, key, "same", lambda side: "same")
    assert summarize_votes(*read_votes(key, [same]))["overall"]["same"] == 1


def test_votes_per_dimension_stay_apart(tmp_path):
    asked = {"realism": "Which looks real?", "layout": "Which is in order?"}
    page, key = write_page(tmp_path, PROMPTS, BEFORE, BEFORE + 200, questions=asked)
    assert [(d["name"], d["question"]) for d in shown(page)["dimensions"]] == list(asked.items())
    fan = voted(tmp_path, key, "fan", lambda side: side, questions=["realism"])
    critic = voted(tmp_path, key, "critic", other, questions=["realism", "layout"])
    made = summarize_votes(*read_votes(key, [fan, critic]))
    assert made["realism"]["gsb"] == 0 and made["realism"]["pairs"] == 40
    assert made["layout"]["gsb"] == -1 and made["layout"]["pairs"] == 20
    with pytest.raises(DataError, match="cannot give"):
        read_votes(key, [voted(tmp_path, key, "lost", lambda side: side)])


def test_foreign_files_are_refused(study, tmp_path):
    _, key = study
    good = json.loads(voted(tmp_path, key, "good", lambda side: side).read_text())
    pair = next(iter(good["votes"]))
    path = tmp_path / "bad.json"
    for change, said in (
        ({"study": "other"}, "another page"),
        ({"format": "x"}, "another page"),
        ({"votes": {"nobody": {"overall": "left"}}}, "cannot give, for example for 'nobody'"),
        ({"votes": {pair: {"overall": "best"}}}, "cannot give"),
        ({"votes": {pair: "left"}}, "cannot give"),
        ({"votes": None}, "cannot give"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match=said):
            read_votes(key, [path])
    path.write_text("[]")
    with pytest.raises(DataError, match="no file of answers"):
        read_votes(key, [path])
    path.write_text(json.dumps(good))
    with pytest.raises(DataError, match="exports of one rater"):
        read_votes(key, [tmp_path / "good.json", path])
    with pytest.raises(DataError, match="no key file"):
        read_votes(path.with_name("none.json"), [path])


def test_two_folders_of_images_become_a_page(tmp_path, capsys):
    """Matched by prompt, whatever the files are called; what a file says about its maker is not in the page."""
    maker = PngInfo()
    maker.add_text("parameters", "model: secret-9000")
    for name, level in (("a", 10), ("b", 90)):
        (tmp_path / name).mkdir()
        for n in range(3):
            file = tmp_path / name / f"{name}{n if name == 'a' else 2 - n}.png"
            Image.new("RGB", (600, 600), (level + n,) * 3).save(file, pnginfo=maker)
            file.with_suffix(".txt").write_text(f"prompt {n}")
    told = ["--before", str(tmp_path / "a"), "--after", str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    assert main(["page", *told]) == 0 and "3 pairs" in capsys.readouterr().out
    key = json.loads((tmp_path / "out" / "gsb_key.json").read_text())
    for pair in shown(tmp_path / "out" / "gsb.html")["items"]:
        for side in ("left", "right"):
            data = base64.b64decode(pair[side].partition(",")[2])
            level = (90 if key["pairs"][pair["id"]]["after"] == side else 10) + int(pair["prompt"][-1])
            assert abs(np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int) - level).max() <= 1
            assert b"secret" not in data
    assert main(["page", "--before", str(tmp_path / "a")]) == 1
    assert "page needs --run, or --before, --after and --out" in capsys.readouterr().err
