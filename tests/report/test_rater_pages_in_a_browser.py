"""Both pages for raters as raters use them: keys, reload, zoom, export, resume on another computer, and what the job
makes of the files."""

import json

import numpy as np
import pytest

from jobs.gsb import main
from tests.report.browser import EXECUTABLE, Browser
from zr_ray.data.annotations import read_annotations
from zr_ray.report.gsb_page import read_votes, write_page
from zr_ray.report.rating_page import paper_rubric, write_rating_page
from zr_ray.report.ratings import read_ratings

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not EXECUTABLE, reason="no headless browser on PATH")]
PROMPTS = [f"a small <b>circle</b>, number {n}" for n in range(6)]
PLACE = "document.querySelector('#count').textContent"
PROMPT = "document.querySelector('#prompt').lastChild.textContent"


@pytest.fixture()
def browser(tmp_path):
    opened = []

    def start(name, **size):
        opened.append(Browser(tmp_path / name, **size))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
        assert one.complaints == [], "refused resources and errors"


def pictures(count, side=8):
    return [np.full((side, side, 3), 20 * n, np.uint8) for n in range(count)]


def after_keys(key_path):
    """Prompt -> the key that says that the image of the second generator is better."""
    pairs = json.loads(key_path.read_text())["pairs"].values()
    return {pair["prompt"]: {"left": "1", "right": "3"}[pair["after"]] for pair in pairs}


def test_votes_by_key_survive_a_reload_and_are_read_by_the_job(browser, tmp_path, capsys):
    page, key_path = write_page(tmp_path / "study", PROMPTS, pictures(6), pictures(6)[::-1])
    best, window = after_keys(key_path), browser("one")
    window.open(page)
    assert window.ask(PLACE) == "Pair 1 of 6, 6 open"
    for pressed in ("after", "after", "2"):
        window.press(best[window.ask(PROMPT)] if pressed == "after" else pressed)
    window.press("ArrowLeft")
    assert window.ask("document.querySelectorAll('.options .chosen').length") == 1, "the vote is shown"
    assert window.ask(PLACE) == "Pair 3 of 6, 3 open"
    window.open(page)
    assert window.ask(PLACE) == "Pair 3 of 6, 3 open", "kept by the browser"
    window.press("n")
    window.click("#left" if best[window.ask(PROMPT)] == "1" else "#right")
    assert window.ask(PLACE) == "Pair 5 of 6, 2 open"
    window.click("#rater")
    for letter in "Ada 1":  # in the field of the name the keys 1 and z are letters
        window.press(letter)
    window.click("#save")
    early = window.downloaded("votes-*.json")
    assert early.name.endswith("-Ada_1.json") and window.ask(PLACE) == "Pair 5 of 6, 2 open"

    other = browser("another")  # another computer: nothing kept there
    other.open(page)
    assert other.ask(PLACE) == "Pair 1 of 6, 6 open"
    other.choose_file("#load", early)
    other.until(f"{PLACE} === 'Pair 5 of 6, 2 open'")
    for _ in range(2):
        other.press(best[other.ask(PROMPT)])
    assert not other.ask("document.querySelector('#done').hidden")
    other.click("#save")
    late = other.downloaded("votes-*.json")

    assert main(["votes", "--key", str(key_path), str(late)]) == 0
    made = json.loads(capsys.readouterr().out.rpartition("}")[0] + "}")["overall"]
    assert made["pairs"] == 6 and made["good"] == pytest.approx(5 / 6) and made["same"] == pytest.approx(1 / 6)
    assert main(["votes", "--key", str(key_path), str(early), str(late)]) == 1, "one rater's files count once"
    assert "exports of one rater (Ada 1)" in capsys.readouterr().err


def test_votes_per_dimension_move_down_the_rows(browser, tmp_path):
    asked = {"realism": "Which looks real?", "layout": "Which is in order?"}
    page, key_path = write_page(tmp_path / "study", PROMPTS[:2], pictures(2), pictures(4)[2:], questions=asked)
    best, window = after_keys(key_path), browser("one", width=390, height=844)
    window.open(page)
    assert window.ask("document.documentElement.scrollWidth") <= 390, "a phone does not scroll sideways"
    for _ in range(2):
        window.press(best[window.ask(PROMPT)])
        window.press("2")
    window.press("ArrowDown")
    window.press(best[window.ask(PROMPT)])  # the last pair's second row is corrected
    window.click("#save")
    _, votes = read_votes(key_path, [window.downloaded("votes-*.json")])
    assert votes["realism"].tolist() == [[1, 1]] and sorted(votes["layout"][0].tolist()) == [0, 1]


def test_zoom_shows_the_same_place_of_both(browser, tmp_path):
    page, _ = write_page(tmp_path / "study", PROMPTS, pictures(6), pictures(6))
    window = browser("one")
    window.open(page)
    shown = (
        "[...document.querySelectorAll('.picture img')].map(i => [getComputedStyle(i).transform,"
        " getComputedStyle(i).transformOrigin, getComputedStyle(i).imageRendering])"
    )
    before = window.ask(shown)
    window.press("z")
    middle = window.ask(shown)
    window.tell("Input.dispatchMouseEvent", type="mouseMoved", **window.ask(
        "(() => { const b = document.querySelector('#right').getBoundingClientRect();"
        " return {x: b.x + b.width / 4, y: b.y + b.height / 4}; })()"
    ))  # fmt: skip
    moved = window.ask(shown)
    assert [one[0] for one in before] == ["matrix(1, 0, 0, 1, 0, 0)"] * 2
    assert [one[0] for one in middle] == ["matrix(2, 0, 0, 2, 0, 0)"] * 2 == [one[0] for one in moved]
    assert moved[0][1] == moved[1][1] != middle[0][1]
    assert before[0][2] == "pixelated", "a small image is enlarged pixel by pixel"


def test_scores_and_comparisons_become_a_set_to_train_on(browser, tmp_path, capsys):
    """The rater gives 4 to everything, 2 to one image in realism, and likes the brighter image of a pair."""
    prompts = [PROMPTS[n // 2] for n in range(6)]
    page, key_path = write_rating_page(tmp_path / "study", prompts, pictures(6), paper_rubric())
    names = list(json.loads(key_path.read_text())["images"])
    window = browser("one")
    window.open(page)
    assert window.ask(PLACE) == "Image 1 of 6, 6 open"
    for n in range(6):
        for dimension in paper_rubric().qualities:
            low = dimension == "realism" and window.ask("state.task") == names[1]
            window.press("2" if low else "4")
        if n == 2:
            window.open(page)
            assert window.ask(PLACE) == "Image 4 of 6, 3 open"
    # three prompts, four dimensions, but two scores of one pair differ
    assert window.ask(PLACE) == "Comparison 1 of 11, 11 open"
    for n in range(11):
        if n == 5:
            window.open(page)
            assert window.ask(PLACE) == "Comparison 6 of 11, 6 open"
        left, right, dimension = window.ask("state.task").split("|")
        assert dimension in window.ask("document.querySelector('.row h2').textContent")
        window.press("1" if names.index(left) > names.index(right) else "3")
    assert not window.ask("document.querySelector('#done').hidden")
    window.click("#save")
    file = window.downloaded("ratings-*.json")

    _, [scores] = read_ratings(key_path, [file])
    for dimension, given in scores.items():
        wanted = [4, 4.5] * 3 if dimension != "realism" else [4, 2, 4, 4.5, 4, 4.5]
        assert [given[name] for name in names] == wanted, dimension
    assert main(["annotations", "--key", str(key_path), "--out", str(tmp_path / "set"), str(file)]) == 0
    assert "4 train" in capsys.readouterr().out
    items = list(read_annotations(tmp_path / "set", decode_images=True))
    assert len(items) == 6 and {score for item in items for score in item.scores.values()} == {2, 4, 4.5}


def test_a_changed_score_takes_its_comparisons_back(browser, tmp_path):
    page, key_path = write_rating_page(tmp_path / "study", PROMPTS[:1] * 2, pictures(2), paper_rubric())
    window = browser("one")
    window.open(page)
    for _ in range(8):
        window.press("3")
    window.press("1")
    assert window.ask(PLACE) == "Comparison 2 of 4, 3 open"
    for _ in range(3):
        window.press("ArrowLeft")
    window.press("5")  # the first dimension of an image: the pair is no tie any more
    assert window.ask("tasks().length") == 2 + 3
    window.click("#save")
    held = json.loads(window.downloaded("ratings-*.json").read_text())
    assert held["comparisons"] == []
    _, [scores] = read_ratings(key_path, [window.downloaded("ratings-*.json")])
    assert sorted(scores["alignment"].values()) == [3, 5]
