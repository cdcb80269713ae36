"""The student's table from made runs: which rows, pooled seeds, claims and their verdicts; command lines that load."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zr_ray.config_distill_table import TableConfig
from zr_ray.config_loader import load_config
from zr_ray.distill_page import near, table_of, write_table
from zr_ray.distill_table import RowRun, row_runs
from zr_ray.errors import ConfigError
from zr_ray.loops.distillation_journal import TEACHER_ROW
from zr_ray.rubric import DIMENSIONS
from zr_ray.run_folder import RunFolder

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"


@pytest.fixture()
def config():
    return load_config(TableConfig, CONFIGS / "distill_table.yaml", ["table.bootstrap_resamples=100"])


def test_the_named_table_is_the_issues(config, tmp_path):
    runs = row_runs(config, tmp_path, tmp_path / "data", Path("/judge"), Path("/teacher"), CONFIGS)
    assert [run.name for run in runs[:5]] == ["sft-s0", "gdso-s0", "opd-s0", "risd-s0", "sft-s1"] and len(runs) == 12
    assert all((f"teacher.path={Path('/teacher')}" in run.overrides) == (run.job in ("opd", "risd")) for run in runs)
    command = runs[3].command(Path("/jobs"))
    assert command[1] == "/jobs/risd.py" and "--resume" not in command and "run.seed=0" in command
    runs[3].folder.mkdir(parents=True)
    (runs[3].folder / "config.resolved.yaml").write_text("")
    assert command[1:4] + ["--resume", str(runs[3].folder)] == runs[3].command(Path("/jobs"))[1:6]
    with pytest.raises(ConfigError, match="opd.stepz"):
        row_runs(
            load_config(TableConfig, None, ["table.rows={x: {job: opd, config: opd_tiny.yaml, overrides: [opd.stepz=2]}}"]),
            tmp_path,
            tmp_path,
            tmp_path,
            tmp_path,
            CONFIGS,
        )


def test_unknown_rows_in_claims_are_refused():
    with pytest.raises(ConfigError, match="must name rows"):
        load_config(TableConfig, CONFIGS / "distill_table.yaml", ["table.claims=[[risd, magic]]"])


def made_items(world_items):
    """Test items with distinct human scores inside every group, so that HPA is known by construction."""
    ranks: dict[str, int] = {}
    items = []
    for item in world_items:
        ranks[item.group] = ranks.get(item.group, 0) + 1
        items.append(replace(item, scores={d: 1.0 + 0.5 * ranks[item.group] for d in DIMENSIONS}))
    return items


def write_run(folder, rows):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "rows.json").write_text(json.dumps(rows))


def test_rows_pool_seeds_and_claims_are_paired(config, world_items, tmp_path):
    items = made_items(world_items)
    right = torch.tensor([[i.scores[d] for d in DIMENSIONS] for i in items])
    wrong = -right
    half = torch.where(torch.arange(len(items))[:, None] < len(items) // 2, right, wrong)  # groups are contiguous

    def row(method, mu, tokens):
        return {"method": method, "mu": mu.tolist(), "tokens_per_score": tokens}

    runs = []
    for job, answers in {"risd": (right, half), "gdso": (half, half), "sft": (wrong, wrong)}.items():
        for seed, mu in enumerate(answers):
            folder = tmp_path / f"{job}-s{seed}"
            write_run(
                folder, [row("zero-shot", wrong, 1.0), *([row(TEACHER_ROW, right, 12.0)] if job == "risd" else []), row(job, mu, 1.0)]
            )
            runs.append(RowRun(job, seed, job, folder, Path(), ()))
    runs.append(RowRun("opd", 0, "opd", tmp_path / "not run", Path(), ()))
    table = table_of(runs, items, config, {"risd": {"images_per_s": 50.0}})
    rows = {r["row"]: r for r in table["rows"]}
    assert list(rows) == ["teacher", "sft", "gdso", "risd"]  # what was not run is no row
    assert [round(rows[n]["pooled"]["hpa"], 3) for n in rows] == [1.0, 0.0, 0.5, 0.75]
    assert rows["risd"]["hpa_per_seed"] == {0: 1.0, 1: 0.5} and rows["risd"]["seconds_per_score"] == pytest.approx(1 / 200)
    assert rows["teacher"]["tokens_per_score"] == 12.0
    claims = {(c["better"], c["worse"]): c for c in table["claims"]}
    assert claims["risd", "sft"]["verdict"] == "holds" and claims["risd", "sft"]["difference"] == pytest.approx(0.75)
    assert claims["risd", "gdso"]["verdict"] == "cannot tell"  # one seed of two is not better
    assert claims["risd", "opd"]["verdict"] == "cannot tell (not run)"
    assert "within 2 points" in claims["risd", "teacher"]["verdict"] and "holds (" not in claims["risd", "teacher"]["verdict"].replace(
        "not hold", ""
    )
    folder = RunFolder(tmp_path / "table")
    folder.path.mkdir()
    text = write_table(folder, table)
    assert (
        "| risd | 75.0" in text and "100.0 50.0" in text and "5.00" in text and json.loads((folder.path / "table.json").read_text())["rows"]
    )


@pytest.mark.parametrize(("ci", "verdict"), [([-0.019, 0.03], "holds"), ([-0.05, -0.03], "does not hold"), ([-0.05, 0.0], "cannot tell")])
def test_near(ci, verdict):
    assert near({"ci": ci}, 0.02) == f"{verdict} (within 2 points)"
