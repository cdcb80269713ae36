"""Held-out data without untied pairs, and a judge that answers the same on everything: every table, log line, report
and card says so instead of failing or showing a number."""

import math

import pytest
import torch

from zr_ray.config.risd import RisdConfig
from zr_ray.judging.evaluate import Judged, row
from zr_ray.records import AnnotatedImage
from zr_ray.report.compare import TestSet, difference
from zr_ray.report.compare import agreement_over_seeds as pooled_seeds
from zr_ray.report.comparison_page import write_table
from zr_ray.report.page import format_table, write_report
from zr_ray.report.student_card import _rows
from zr_ray.report.tables import markdown_tables
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import console_line
from zr_ray.run.result import check_result, value_text

WARNING = "split 'test' has no same-prompt pair with different scores"


def judged(items, same=False):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(len(items), 4, 1, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    if same:
        labels[:] = labels[0, 0]
    return Judged(labels, torch.ones(len(items), 4, 1), PAPER, (("",) * 4,) * len(items))


def result(path, same=False):
    """A finished evaluation of one image per prompt: correlations, but nothing to compare within a prompt."""
    items = [
        AnnotatedImage(f"i{n}", f"g{n}", "test", f"p{n}", path / "x.png", dict.fromkeys(DIMENSIONS, 1.0 + n % 5))
        for n in range(12)
    ]
    human = torch.tensor([[item.scores[d] for d in DIMENSIONS] for item in items], dtype=torch.float64)
    rows = [row(name, judged(items, same), human, items, 20, 0) for name in ("zero-shot", "gdso")]
    return {"job": "gdso", "run_id": "r", "status": "SUCCEEDED", "wall_s": 1.0, "rows": rows, "noise_ceiling": None}


def test_no_pairs_in_the_row_in_tables_log_lines_report_and_card(tmp_path):
    found = result(tmp_path)
    check_result(found)
    pooled = found["rows"][1]["pooled"]
    assert pooled["hpa"] is None and pooled["pairs"] == 0 and math.isfinite(pooled["plcc"])
    run = RunFolder.create(tmp_path, "r", RisdConfig())
    run.write_result(found)
    run.write_json("data.json", {"warnings": [WARNING]})
    texts = {
        "log": format_table(found),
        "markdown": markdown_tables(found),
        "report": write_report(run).read_text(),
        "card": _rows(found["rows"]),
        "step": console_line(1, 2, {"eval/hpa": float("nan")}),
    }
    for name, text in texts.items():
        assert "no pairs" in text and "nan" not in text, name
    assert "no pairs %" not in texts["report"] and f"{pooled['srcc']:.3f}" in texts["report"]
    assert "Warnings about the data" in texts["report"] and "has no same-prompt pair" in texts["report"]


def test_a_constant_judge_has_no_correlation_and_it_says_why(tmp_path):
    found = result(tmp_path, same=True)
    check_result(found)
    pooled = found["rows"][0]["pooled"]
    assert pooled["plcc"] is None and pooled["plcc_ci"] is None and pooled["undefined"] == "constant prediction"
    for text in (format_table(found), markdown_tables(found), _rows(found["rows"])):
        assert "constant prediction" in text
    assert value_text(pooled, "plcc") == "constant prediction" and value_text({}, "plcc") == "-"


def test_no_pairs_in_a_table_of_runs(tmp_path):
    human = torch.arange(1.0, 6.0).double()[:, None].expand(5, 4)
    test = TestSet(human, torch.arange(5), resamples=20, seed=0, rubric=PAPER)
    mu = {seed: human + 0.1 * seed for seed in (0, 1)}
    entry = {"judge": "builtin", "row": "gdso", "seeds": [0, 1], **pooled_seeds(list(mu.values()), test)}
    entry |= {"hpa_per_seed": {0: None, 1: None}, "tokens_per_score": 1.0, "minutes": None, "step_minutes": None}
    claim = {"judge": "builtin", "better": "gdso", "worse": "sft"} | difference(mu, mu, test, "hpa")
    assert claim["difference"] is None and claim["per_seed"] == {0: None, 1: None}
    run = RunFolder.create(tmp_path, "table", RisdConfig())
    text = write_table(run, {"rows": [entry, entry | {"judge": "small"}], "claims": [claim], "swaps": []})
    assert text.count("no pairs") >= 4 and "nan" not in text
    assert entry["pooled"]["plcc"] == pytest.approx(1.0)


def test_a_judge_that_scored_nothing(tmp_path):
    """All outputs malformed: a teacher of another format, an untrained chat model."""
    from zr_ray.functional.disagreement import disagreement
    from zr_ray.judging.agreement import full_row

    path = tmp_path / "x.png"
    items = [
        AnnotatedImage(f"i{n}", f"g{n // 2}", "test", f"p{n // 2}", path, dict.fromkeys(DIMENSIONS, 1.0 + n % 5))
        for n in range(12)
    ]
    human = torch.tensor([[item.scores[d] for d in DIMENSIONS] for item in items], dtype=torch.float64)
    empty = Judged(
        torch.full((12, 4, 1, 9), math.nan, dtype=torch.float64), torch.ones(12, 4, 1), PAPER, (("",) * 4,) * 12
    )
    rows = [row("zero-shot", empty, human, items, 20, 0), full_row("teacher", empty, items, 20, 0)]
    found = {"job": "gdso", "run_id": "r", "status": "FAILED", "wall_s": 1.0, "rows": rows, "noise_ceiling": None}
    check_result(found)
    run = RunFolder.create(tmp_path, "r", RisdConfig())
    run.write_result(found)
    texts = [format_table(found), markdown_tables(found), write_report(run).read_text(), _rows(rows)]
    assert all("nan" not in text.replace("nance", "") for text in texts)
    assert rows[0]["malformed_frac"] == 1.0 and rows[0]["pooled"]["items"] == 0
    nothing = torch.full((12, 9), math.nan, dtype=torch.float64)
    group = torch.arange(12)
    gap = disagreement(nothing, nothing, group, torch.arange(9.0).double(), None, 20, 0)
    assert value_text(gap, "mu_gap") == "-"
