"""Rubric scores from people: any rubric, half points rater by rater, and a set that training's loader reads."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from jobs.gsb import main
from zr_ray.data.annotations import read_annotations
from zr_ray.data.load import require_judge
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import DataError
from zr_ray.report.rating_page import FORMAT, paper_rubric, read_rating_rubric, write_rating_page
from zr_ray.report.ratings import agreement, read_ratings, write_rated
from zr_ray.rubric import PAPER

PROMPTS = [f"prompt {n // 3}" for n in range(12)]
IMAGES = [np.full((8, 8, 3), 20 * n, np.uint8) for n in range(12)]
OWN = {
    "bins": [0, 0.5, 1, 1.5, 2],
    "dimensions": {"text rendering": {"question": "Legible?", "points": {"2": "yes", "0": "no"}}, "layout": {}},
}


@pytest.fixture()
def study(tmp_path):
    return write_rating_page(tmp_path, PROMPTS, IMAGES, paper_rubric())[1]


def rated(key_path, name, score, comparisons=()):
    """An export: score(place of the image, dimension) -> score or None; comparisons by places of images."""
    key = json.loads(key_path.read_text())
    names = list(key["images"])
    scores = {n: {d: s for d in key["points"] if (s := score(place, d)) is not None} for place, n in enumerate(names)}
    told = [{"left": names[a], "right": names[b], "dimension": d, "vote": vote} for a, b, d, vote in comparisons]
    head = {"format": FORMAT, "study": key["study"], "session": name, "rater": name}
    path = key_path.with_name(f"{name}.json")
    path.write_text(json.dumps(head | {"scores": scores, "comparisons": told}))
    return path


def test_the_page_asks_the_papers_rubric(study):
    page = study.with_name("rate.html").read_text()
    told = json.loads(re.search(r'id="study">(.*?)</script>', page)[1])
    assert [d["name"] for d in told["dimensions"]] == list(PAPER.dimensions)
    first = told["dimensions"][0]
    assert [point["value"] for point in first["points"]] == first["compared"] == [1, 2, 3, 4, 5]
    assert first["points"][4]["text"] == "every request is met" and first["question"].endswith("?")
    assert all(set(item) == {"id", "prompt", "image"} for item in told["items"])


def test_another_rubric_is_data(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(OWN))
    own = read_rating_rubric(file)
    assert own.qualities["text rendering"].points == {0: "no", 2: "yes"}, "ascending"
    assert list(own.qualities["layout"].points) == [0, 1, 2], "whole numbers where none are named"
    for change, said in (
        ({"bins": [2, 1]}, "ascending"),
        ({"dimensions": {"overall": {}}}, "overall"),
        ({"dimensions": {"layout": {"points": {"3": ""}}}}, "two or more of the bins"),
        ({"dimensions": {"layout": {"words": ""}}}, "question and points"),
        ({"scale": 3}, "unknown key 'scale'"),
    ):
        file.write_text(json.dumps(OWN | change))
        with pytest.raises(DataError, match=said):
            read_rating_rubric(file)


def test_ratings_become_a_set_that_training_reads(study, tmp_path):
    """Two raters. Training items: one bin, the rounded mean; test items: both scores."""
    better = [(3 * g, 3 * g + 1, "realism", "left") for g in range(4)]
    first = rated(study, "first", lambda n, d: 4 if n % 3 < 2 else 2, better)
    second = rated(study, "second", lambda n, d: 4 if n % 3 < 2 else None if d == "alignment" else 3, better)
    key, ratings = read_ratings(study, [first, second])
    counts = write_rated(tmp_path / "set", study, key, ratings, train_frac=0.75)
    assert counts == {"train": 9, "dev": 0, "test": 3, "pairs": 3 * (3 + 3 * 2), "unscored": 0}
    assert (tmp_path / "set" / "annotations.parquet").is_file()
    for item in read_annotations(tmp_path / "set", decode_images=True):
        place = int(np.asarray(Image.open(item.image))[0, 0, 0]) // 20
        assert item.prompt == PROMPTS[place] and item.origin == "human", "the image that was rated"
        kind = place % 3
        # both find image 0 better than 1 in realism; image 2 gets 2 and 3, in alignment from one of them only
        test = {
            "realism": [(4.5, 4.5), (4, 4), (2, 3)],
            "aesthetics": [(4, 4), (4, 4), (2, 3)],
            "alignment": [(4, 4), (4, 4), 2],
        }
        train = {"realism": [4.5, 4, 2.5], "aesthetics": [4, 4, 2.5], "alignment": [4, 4, 2]}
        for dimension, wanted in (train if item.split == "train" else test).items():
            assert item.scores[dimension] == wanted[kind]
    require_judge(tmp_path / "set", PAPER)
    agreed = agreement(key, ratings)
    assert 0 < agreed["realism"] < 1 and math.isnan(agreed["alignment"]), "where two rated they all gave the same"


def test_the_sets_own_rubric_goes_with_it(tmp_path, capsys):
    rubric, table = tmp_path / "own.json", tmp_path / "images.jsonl"
    rubric.write_text(json.dumps(OWN))
    rows = []
    for n, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        rows.append(json.dumps({"image": f"{n}.png", "prompt": PROMPTS[n]}))
    table.write_text("\n".join(rows))
    out = tmp_path / "study"
    assert main(["rate", "--images", str(table), "--out", str(out), "--rubric", str(rubric), "--per-prompt", "2"]) == 0
    assert "8 images of 4 prompts" in capsys.readouterr().out
    file = rated(out / "rate_key.json", "one", lambda n, d: 2 if n % 2 else 0)
    assert main(["annotations", "--key", str(out / "rate_key.json"), "--out", str(tmp_path / "set"), str(file)]) == 0
    said = capsys.readouterr().out
    assert "6 train" in said and "2 test" in said and "6 pairs" in said and "alpha" not in said
    assert read_rubric(tmp_path / "set").bins == (0, 0.5, 1, 1.5, 2)
    assert read_rubric(tmp_path / "set").dimensions == ("text rendering", "layout")
    again = ["annotations", "--key", str(out / "rate_key.json"), "--out", str(tmp_path / "set"), str(file)]
    assert main(again) == 1 and "holds an annotation set" in capsys.readouterr().err


def test_answers_that_the_page_cannot_give_are_refused(study, tmp_path):
    good = json.loads(rated(study, "good", lambda n, d: 4).read_text())
    names = list(good["scores"])
    path = tmp_path / "bad.json"

    def compared(**change):
        return {"comparisons": [{"left": names[0], "right": names[1], "dimension": "realism", "vote": "left"} | change]}

    for change in (
        {"scores": {"nobody": {"realism": 4}}},
        {"scores": {names[0]: {"realism": 4.5}}},
        {"scores": {names[0]: {"realism": True}}},
        {"scores": {names[0]: {"speed": 4}}},
        {"scores": [1]},
        compared(right=names[3]),
        compared(vote="best"),
        compared(dimension="speed"),
        {"comparisons": None},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match="cannot give"):
            read_ratings(study, [path])
    path.write_text(json.dumps(good | compared()))
    _, [scores] = read_ratings(study, [path])
    assert [scores["realism"][name] for name in names[:3]] == [4.5, 4, 4]
    few = json.loads(path.read_text())["scores"]
    path.write_text(json.dumps(good | {"scores": {n: few[n] for n in names[:3]}, "comparisons": []}))
    with pytest.raises(DataError, match="two prompts or more"):
        write_rated(tmp_path / "set", study, *read_ratings(study, [path]))
