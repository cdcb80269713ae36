"""The report: what it says is what result.json says, it needs nothing else, and nothing in it can run."""

import html.parser
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import CheckpointError
from zr_ray.report.figures import distribution_bars, reliability_charts, training_curves
from zr_ray.report.page import format_table, write_report
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.run.folder import RunFolder


def agreement(hpa: float, plcc: float) -> dict:
    return {
        "hpa": hpa,
        "hpa_ci": [hpa - 0.02, hpa + 0.02],
        "margin_hpa": hpa + 0.05,
        "margin_hpa_ci": [hpa + 0.03, hpa + 0.07],
        "plcc": plcc,
        "plcc_ci": [plcc - 0.04, plcc + 0.04],
        "srcc": plcc - 0.02,
        "items": 1000,
        "pairs": 1234,
    }


def row(method: str, hpa: float, slope: float, tokens: float) -> dict:
    mu = np.linspace(3 - 1.6 * slope, 3 + 1.6 * slope, 8)
    curve = {
        "predicted": mu.tolist(),
        "human": (3 + (mu - 3) / max(slope, 0.3) * 0.9).clip(1, 5).tolist(),
        "count": [125] * 8,
    }
    return {
        "method": method,
        "pooled": agreement(hpa, slope),
        "dimensions": {d: agreement(hpa + 0.01 * n, slope) for n, d in enumerate(DIMENSIONS)},
        "tokens_per_score": tokens,
        "malformed_frac": 0.004,
        "reliability": dict.fromkeys(DIMENSIONS, curve),
    }


RESULT = {
    "job": "gdso",
    "run_id": "demo",
    "status": "SUCCEEDED",
    "wall_s": 431.0,
    "rows": [
        row("zero-shot", 0.652, 0.25, 1.0),
        row("base, reasoning", 0.668, 0.3, 22.4),
        row("gdso", 0.814, 0.81, 22.1),
    ],
    "noise_ceiling": {"pooled": agreement(0.922, 0.95), "dimensions": {d: agreement(0.922, 0.95) for d in DIMENSIONS}},
}

REASONING = "a small ok red cube ok large ok blue bad sphere ok relation left ok extra no "
HOSTILE = "<script>alert(1)</script> & a <b>red</b> \"cube\" on a 'sphere' https://example.org/x.png"


def metrics_of(step: int) -> dict:
    t, wave = step / 60, math.sin(step)
    values = {
        "reward/total": 1.4 + 0.3 * t + 0.02 * wave,
        "reward/pointwise": 0.7 + 0.15 * t,
        "reward/pairwise": 0.7 + 0.14 * t,
        "loss/total": 2 - t,
        "loss/pointwise": 2.1 - t,
        "loss/pairwise": 0.3 - 0.1 * t,
        "loss/policy": 0.01 * wave,
        "score/entropy": 1.9 - 0.8 * t,
        "policy/kl": 0.002 * (step % 20),
        "policy/clip_frac": 0.0,
        "rollout/malformed_frac": 0.01 * (1 - t),
        "sync/max_abs_diff": 4e-7 + 1e-8 * wave,
        "policy/ratio_max_abs_diff": 9e-7,
        "time/rollout_s": 1.9 + 0.1 * wave,
        "time/train_s": 2.4,
        "time/push_s": 0.2,
        "time/step_s": 4.6,
        "time/tokens_per_s": 4000 + 100 * wave,
        "learner/lr": 2e-4 * (1 - t),
        "learner/grad_norm": 1.0 + 0.2 * wave,
        "rollout/tokens_per_sample": 22.0,
    }
    return values | ({"eval/hpa": 0.66 + 0.16 * t, "eval/plcc": 0.3 + 0.5 * t} if step % 20 == 0 else {})


def make_run(root: Path) -> RunFolder:
    """A finished run with made-up numbers (not measurements) and six 64x64 pictures."""
    run = RunFolder.create(root, "demo", GdsoConfig())
    for step in range(1, 61):
        run.append_metrics(step, metrics_of(step))
    run.write_result(RESULT)
    random = np.random.default_rng(0)
    examples = []
    for n in range(6):
        picture = np.full((64, 64, 3), random.integers(120, 255, 3), np.uint8)
        picture[12 + n : 40, 10 : 40 + n] = random.integers(0, 255, 3)
        Image.fromarray(picture).save(run.examples / f"{n}.png")
        q = np.exp(-((np.array(SCORE_BINS) - 1.5 - n * 0.6) ** 2))
        q /= q.sum()
        examples.append(
            {
                "image": f"{n}.png",
                "prompt": HOSTILE if n == 1 else "a small red cube left of a large blue sphere",
                "dimension": DIMENSIONS[n % 4],
                "reasoning": "" if n == 2 else REASONING * (1 + 5 * (n == 3)),
                "q": q.tolist(),
                "mu": float(q @ np.array(SCORE_BINS)),
                "mu_before": None if n == 4 else 3.1,
                "human": None if n == 5 else 1.5 + n * 0.5,
                "method": "gdso",
            }
        )
    run.write_json("examples/examples.json", examples)
    return run


class Page(html.parser.HTMLParser):
    """Text, tags and attributes of a page; fails on tags that are not closed in order."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    run = make_run(tmp_path_factory.mktemp("runs"))
    assert write_report(run) == run.path / "report.html"
    return run


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page((run.path / "report.html").read_text())


def test_headline_and_table_say_what_the_result_says(page):
    assert "gdso: pooled HPA 81.4 %, +16.2 points against zero-shot" in page.text
    assert "95 % intervals do not overlap" in page.text
    assert "10.8 points above gdso" in page.text, "distance to the noise ceiling, 92.2 - 81.4"
    for piece in (
        "65.2 [63.2, 67.2]",
        "81.4 [79.4, 83.4] +16.2",
        "0.810 [0.770, 0.850] +0.560",
        "92.2 [90.2, 94.2] +27.0",
        "1,234 pairs of 1,000 scores",
        "7 min 11 s",
        "annotators are simulated",
    ):
        assert piece in page.text
    assert page.text.count("noise ceiling") >= 4


def test_the_page_is_complete_in_itself(page, run):
    source = (run.path / "report.html").read_text()
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), attributes[name]
    assert not re.search(r"url\((?!#)|@import", source)
    assert "default-src 'none'" in source
    assert len(source) < 2_000_000


def test_text_from_models_and_data_is_escaped(page):
    assert HOSTILE in page.text
    assert sum(tag == "b" for tag, _ in page.tags) == 4, "the tiles' numbers, nothing out of a prompt"


def test_curves_reliability_and_examples_are_there(page):
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    for title in (
        "Reward",
        "Losses",
        "Score entropy",
        "KL to the reference",
        "Malformed outputs",
        "Seconds per phase",
        "Engine against learner",
    ):
        assert any(label.startswith(title) for label in labels), title
    assert sum(label.startswith("Reliability in ") for label in labels) == 4
    assert sum(label.startswith("score distribution") for label in labels) == 6
    assert sum(tag == "img" and attributes["class"] == "pixels" for tag, attributes in page.tags) == 6
    assert "rollout train push" in page.text, "phases in the legend, without the sum of the step"


def test_colors_follow_the_page(run):
    source = (run.path / "report.html").read_text()
    assert "#fd00" not in source and "var(--s1)" in source and "prefers-color-scheme: dark" in source
    drawings = source.split("</style>", 1)[1]
    assert not re.search(r"(fill|stroke): ?#", drawings), "a fixed color would vanish in one of the modes"


def test_bars_are_the_distribution_and_marks_stand_where_they_should():
    q = [0.0, 0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0.0, 0.0]
    svg = distribution_bars(q, human=3.0, mu=3.0, mu_before=1.0)
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert len(heights) == 9
    assert heights == pytest.approx([h / 0.4 * max(heights) for h in q], abs=0.06)
    centers = [float(x) + 13 for x in re.findall(r'<rect x="([\d.]+)"', svg)]
    marks = {name: float(x) for name, x in re.findall(r'class="([\w-]+)" d="M([\d.]+)', svg)}
    assert marks == pytest.approx({"mu-before": centers[0], "mu": centers[4], "human": centers[4]}, abs=0.1)
    assert "human" not in distribution_bars(q, None, 3.0, None)


def test_distribution_on_another_scale():
    """Seven bars from 0 to 3; the human score stands on the middle of its bar."""
    svg = distribution_bars([0.1] * 6 + [0.4], 3.0, 1.5, None, [k / 2 for k in range(7)])
    bars = [(float(x), float(width)) for x, width in re.findall(r'<rect x="([\d.]+)".*?width="([\d.]+)"', svg)]
    assert len(bars) == 7 and re.findall(r">([\d.]+)</text>", svg) == ["0", "0.5", "1", "1.5", "2", "2.5", "3"]
    assert float(re.search(r'class="human" d="M([\d.]+) ', svg)[1]) == pytest.approx(sum(bars[-1]) - 13, abs=0.1)
    assert float(re.search(r'class="mu" d="M([\d.]+) ', svg)[1]) == 160  # the middle of the picture


def test_reliability_axes_span_the_scale():
    curve = {"predicted": [0.5, 2.5], "human": [0.4, 2.6], "count": [3, 3]}
    result = {"rows": [{"method": "gdso", "reliability": {"layout": curve}}], "bins": [k / 2 for k in range(7)]}
    ((name, svg),) = reliability_charts(result)
    ticks = re.findall(r">(\d(?:\.\d)?)</text>", svg)
    assert name == "layout" and ticks == ["0", "1", "2", "3"] * 2, ticks


def test_panels_take_only_what_a_run_has():
    lines = [{"step": 1, "reward/total": 0.5, "other/x": 1.0, "policy/kl": None}, {"step": 2, "reward/total": None}]
    assert [panel.title for panel, _ in training_curves(lines)] == ["Reward"]
    assert training_curves([]) == []


def test_a_run_with_little_to_show_still_has_a_report(tmp_path):
    run = RunFolder.create(tmp_path, "bare", GdsoConfig())
    with pytest.raises(CheckpointError, match="has no result.json"):
        write_report(run)
    empty = {"hpa": None, "margin_hpa": None, "plcc": None, "srcc": None}
    bare = {"method": "zero-shot", "pooled": empty, "dimensions": {"realism": empty}}
    run.write_result({"job": "gdso", "run_id": "bare", "status": "FAILED", "wall_s": 1.0, "rows": [bare]})
    page = Page(write_report(run).read_text())
    assert "zero-shot: pooled HPA no pairs" in page.text and "Examples" not in page.text and "FAILED" in page.text


def test_large_pictures_are_scaled_down(tmp_path):
    run = make_run(tmp_path)
    Image.effect_noise((1500, 1000), 80).convert("RGB").save(run.examples / "0.png")
    source = write_report(run).read_text()
    assert "data:image/jpeg" in source and len(source) < 2_000_000


def test_plain_table():
    lines = format_table(RESULT).splitlines()
    cells = {line[:18].strip(): line[18:].split() for line in lines}
    assert cells["gdso"][:5] == ["81.4", "(+16.2)", "82.4", "(+16.2)", "83.4"], "by dimension: the last block"
    first = next(line for line in lines if line.startswith("gdso"))
    assert first.split() == ["gdso", "81.4", "[79.4,", "83.4]", "+16.2", "86.4", "0.810", "0.790", "22.1", "0.4", "%"]
    assert next(line for line in lines if line.startswith("zero-shot")).split()[1:5] == [
        "65.2",
        "[63.2,",
        "67.2]",
        "70.2",
    ]
    assert next(line for line in lines if line.startswith("noise ceiling")).split()[-2:] == ["-", "-"]
    assert max(map(len, lines)) <= 120, "fits a terminal"


@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")), reason="no headless browser on PATH"
)
def test_a_browser_draws_it_without_a_complaint(run, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    picture = tmp_path / "report.png"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=390,3000",
            f"--screenshot={picture}",
            (run.path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, "refused resources and errors would show here"
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (3000, 390) and pixels.std() > 5


def test_the_examples_schema_in_the_module_is_the_one_tested(run):
    import zr_ray.report.page

    for key in json.loads((run.path / "examples" / "examples.json").read_text())[0]:
        assert f'"{key}"' in zr_ray.report.page.__doc__
