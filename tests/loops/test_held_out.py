"""The held-out set of a judge loop, with answers made from the human scores: rows, curve, and a judge that says
nothing."""

import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from zr_ray.config.sections import CheckpointSection, EvaluationSection, RunSection
from zr_ray.functional.scores import two_hot
from zr_ray.judging.evaluate import Judged, human_scores
from zr_ray.loops.held_out import HeldOut
from zr_ray.loops.journal import Journal
from zr_ray.report.page import format_table
from zr_ray.rubric import PAPER
from zr_ray.run.folder import PROGRESS_FILE

BINS = torch.tensor(PAPER.bins, dtype=torch.float64)


class Learner:
    """One rank that trains nothing."""

    rank, world = 0, 1

    def barrier(self):
        pass

    def save_judge(self, folder):
        folder.mkdir()


def answers(items, broken=False):
    """Each item's human scores as distributions of one output, or outputs without a score."""
    labels = two_hot(human_scores(items, PAPER), BINS).clamp_min(1e-9).log().unsqueeze(2)
    labels = torch.full_like(labels, torch.nan) if broken else labels
    tokens = torch.full(labels.shape[:3], 5.0)
    return Judged(labels, tokens, PAPER, (("because",) * len(PAPER.dimensions),) * len(items))


@pytest.fixture()
def parts(world_items, tmp_path):
    """(journal, held-out set, what was asked); the judge is broken once "broken" is in what was asked."""
    asked = []

    def ask(items, reasoning, samples):
        asked.append((len(items), reasoning, samples))
        return answers(items, "broken" in asked)

    evaluation = EvaluationSection(every_steps=2, items=8, samples=4, bootstrap_resamples=20)
    task = SimpleNamespace(config=SimpleNamespace(evaluation=evaluation, run=RunSection()), test=world_items[:16])
    journal = Journal(tmp_path, Learner(), CheckpointSection(), total_steps=4, started_at=time.time())
    journal.restore()
    return journal, HeldOut(journal, Learner(), task, "gdso", True, ask), asked


def test_rows_before_during_and_after(parts):
    journal, held_out, asked = parts
    held_out.before()
    curve = [held_out.during(step) for step in (1, 2, 3, 4)]
    assert [bool(metrics) for metrics in curve] == [False, True, False, False]  # the last step is judged by finish
    assert curve[1]["eval/hpa"] == 1.0 and curve[1]["eval/srcc"] == pytest.approx(1.0)
    result = held_out.finish()
    assert asked == [(16, False, 0), (16, True, 4), (8, True, 0), (16, True, 4)]
    assert [row["method"] for row in result["rows"]] == ["zero-shot", "base, reasoning", "gdso"]
    assert all(row["pooled"]["hpa"] == 1.0 and "mu" not in row for row in result["rows"]) and "status" not in result
    kept = json.loads((journal.run.path / "rows.json").read_text())
    assert len(kept[0]["mu"]) == 16
    journal.finish("gdso", result)
    assert journal.run.read_result()["status"] == "SUCCEEDED" and journal.run.judge.is_dir()


def test_a_judge_that_scores_nothing_has_not_succeeded(parts):
    journal, held_out, asked = parts
    held_out.before()
    asked.append("broken")
    journal.finish("gdso", held_out.finish())
    result = journal.run.read_result()
    assert result["status"] == "FAILED" and "gave no score in any of 64 outputs" in result["problem"]
    assert result["rows"][-1]["malformed_frac"] == 1.0 and result["rows"][0]["pooled"]["hpa"] == 1.0


def test_held_out_data_without_pairs_goes_through_to_the_table(parts):
    journal, held_out, _ = parts
    held_out.items = [replace(item, group=item.id) for item in held_out.items]  # one image a prompt
    held_out.before()
    curve = held_out.during(2)
    assert math.isnan(curve["eval/hpa"]) and curve["eval/plcc"] == pytest.approx(1.0, abs=1e-3)
    journal.finish("gdso", held_out.finish())
    result = journal.run.read_result()
    assert result["status"] == "SUCCEEDED" and result["noise_ceiling"]["pooled"]["hpa"] is None
    assert all(row["pooled"]["hpa"] is None and row["pooled"]["plcc"] > 0.99 for row in result["rows"])
    assert (journal.run.path / PROGRESS_FILE).read_text().count("HPA no pairs") == 3
    assert format_table(result).count("no pairs") >= 8 and "nan" not in format_table(result)
