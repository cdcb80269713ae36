"""A table of text-to-image runs as a user makes it."""

import json

import pytest

from zr_ray.judging.held_out_images import Look

TABLES = ("table", "longer")


@pytest.mark.slow
def test_a_table_is_made_of_real_runs_repeats_none_and_is_extended(ray_cluster, run_job, tmp_path):
    small = [
        "generator.compiled=false",
        "generator.steps=3",
        "prompts.held_out=4",
        "held_out.watched=2",
        "held_out.every_steps=1",
        "held_out.bootstrap_resamples=20",
        "held_out.grid=4",
        "held_out.best_of=3",
        "actor.warmup_steps=0",
        "actor.cpus=0.5",
        "reward.cpus=0.5",
        "t2i.prompts_per_step=2",
        "t2i.group_size=2",
        "t2i.steps=1",
    ]
    told = [
        f"table.overrides={json.dumps(small)}",
        'table.rows={"nft": [], "flowbp": ["t2i.algorithm=flowbp"]}',
        "table.beside=[nft]",
        "table.seeds=[0]",
        f"run.root={tmp_path}",
        "run.name=table",
    ]
    assert run_job("t2i_table", *told) == 0
    rows = json.loads((tmp_path / "table/table.json").read_text())["rows"]
    assert [row["row"] for row in rows[:2]] == ["nft", "flowbp"] and len(rows) == 2 + 5
    assert rows[0]["images"] == 4 and rows[1]["images"] == 2
    nft, flowbp = (tmp_path / f"table/rows/{name}-s0" for name in ("nft", "flowbp"))
    assert "before, as nft-s0 saw it" in (flowbp / "progress.log").read_text()
    looks = [Look.load(run / "held_out" / "before.npz") for run in (nft, flowbp)]
    assert (looks[0].images == looks[1].images).all() and looks[0].prompts == looks[1].prompts
    first = (tmp_path / "table/rows/nft-s0/result.json").stat().st_mtime_ns
    assert run_job("t2i_table", *told, "--resume", "table") == 0
    assert (tmp_path / "table/rows/nft-s0/result.json").stat().st_mtime_ns == first

    longer = [word.replace("t2i.steps=1", "t2i.steps=2") for word in told[:-1]]
    extended = [f"table.extends={tmp_path / 'table'}", "run.name=longer"]
    assert run_job("t2i_table", *longer, *extended) == 0
    for name in ("nft", "flowbp"):
        lines = [(tmp_path / f"{table}/rows/{name}-s0/metrics.jsonl").read_text().splitlines() for table in TABLES]
        assert len(lines[0]) == 1 and len(lines[1]) == 2 and lines[1][0] == lines[0][0]  # went on, did not begin anew
        assert json.loads((tmp_path / f"longer/rows/{name}-s0/result.json").read_text())["steps"] == 2
