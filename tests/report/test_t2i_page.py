"""The table of a text-to-image run: a color where a direction is better, no change that reads as nothing, every name of
the reward."""

import re

import numpy as np
import pytest

from zr_ray.judging.held_out_images import Look
from zr_ray.report.t2i_page import _number, _pictures, _table


def row(difference, spread=0.5):
    low, high = sorted((difference * (1 - spread), difference * (1 + spread)))
    return {"before": 1.0, "after": 1.0 + difference, "difference": difference, "low": low, "high": high}


def cells(**figures):
    """Name -> (class, text) of the change in the table."""
    named = {name.replace("__", "/"): value for name, value in figures.items()}
    html = _table({"figures": named, "beside": {"best of <2>": named}})
    assert "best of &lt;2&gt;" in html
    return dict(re.findall(r"<tr><td>([^<]*)</td>.*?<span class='(\w*)'>", html)), html


def test_a_color_says_better_or_worse_where_there_is_such_a_thing():
    tones, _ = cells(
        reward__sum=row(1.0),
        reward__entropy=row(-1.0),
        verifier__realism=row(-1.0),
        verifier__match=row(0.1, spread=2),
        verifier__nothing_seen=row(-0.1),
        verifier__clutter=row(0.1),
        image__blockiness=row(0.1),
        image__dark_frac=row(0.1),
        image__seed_distance=row(-1.0),
    )
    assert tones == {
        "sum": "good",
        "entropy": "",
        "realism": "bad",
        "match": "",
        "nothing seen": "good",
        "clutter": "bad",
        "blockiness": "bad",
        "dark frac": "",
        "seed distance": "bad",
    }


def test_a_users_own_reward_stands_in_its_group():
    _, html = cells(verifier__sum=row(1.0), reward__brightness=row(1.0), reward__sum=row(1.0))
    order = [html.index(word) for word in ("Reward: ", ">sum<", ">brightness<", "Verifier: ", "<td>sum</td><td>1.00")]
    assert order[:4] == sorted(order[:4]) and html.count(">sum<") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16.731, "16.73"),
        (0.4768, "0.477"),
        (-0.0526, "-0.053"),
        (0.00066, "0.00066"),
        (0.000029, "0.000029"),
        (0, "0.00"),
    ],
)
def test_small_figures_keep_two_digits(value, text):
    assert _number(value) == text


def test_every_pair_stands_with_its_prompt():
    images = np.zeros((3, 2, 8, 8, 3), np.uint8)
    before, after = (Look(("a <b>", "c", "d"), images + level, {}) for level in (0, 200))
    html = _pictures(before, after, 2)
    assert html.count("<figure>") == 2 and html.count("<img") == 4 and "a &lt;b&gt;" in html and ">d<" not in html
    assert len(set(re.findall(r'src="([^"]*)"', html))) == 2, "one picture of each side, all prompts alike"
