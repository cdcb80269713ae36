"""A table of text-to-image runs: every row and seed by the ordinary job, then changes with intervals beside each other.

A finished run is never repeated, an interrupted one is resumed. In the table's run folder: rows/<row>-s<seed>/ the
runs, logs/, table.json, table.md. A row whose images or seconds are its budget says so in its overrides.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.config.t2i_table import T2iTableConfig
from zr_ray.errors import CheckpointError, ConfigError
from zr_ray.loops.t2i_watch import LOOKS_FILE
from zr_ray.report.t2i_table import beside_rows, row_of, t2i_markdown
from zr_ray.run.folder import CONFIG_FILE, RESULT_FILE, RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import say
from zr_ray.run.table_rows import RowRun, run_missing


def make_t2i_table(config: T2iTableConfig, args: argparse.Namespace, jobs: Path) -> None:
    """Run what is missing, write and print the table; with --dry-run print the command lines only.

    Args: jobs: folder of the job files.   Raises: CheckpointError if runs failed, after the table of the others;
    ConfigError before anything starts."""
    launch(
        "t2i-table",
        config,
        args.dry_run,
        lambda resumed: _check(config, jobs, resumed),
        lambda _, started: _make(config, jobs, started),
    )


def _check(config: T2iTableConfig, jobs: Path, resumed: RunFolder | None) -> Plan[None]:
    """The runs ask Ray for what they need themselves, each in its turn: there are no bundles."""
    c = config.table
    unknown = [name for name in c.beside if name not in c.rows]
    if unknown:
        raise ConfigError(f"table.beside must name rows, got {unknown[0]!r}; rows are {', '.join(c.rows)}")
    if c.extends is not None and not (c.extends / "rows").is_dir():
        raise ConfigError(f"table.extends must be the folder of a table, with runs in rows/, got {c.extends}")
    runs = t2i_runs(config, resumed.path if resumed else Path("TABLE").absolute(), jobs / "configs")
    return Plan(None, {run.name: " ".join(run.command(jobs)[1:]) for run in runs})


def _make(config: T2iTableConfig, jobs: Path, started: Started) -> None:
    c, folder = config.table, started.run
    assert folder is not None
    runs = t2i_runs(config, folder.path, jobs / "configs")
    for run in runs:
        if c.extends is not None and not run.folder.exists():
            take_over(run, c.extends)
    until = None if c.stop_after_s is None else started.started_at + c.stop_after_s
    failed = run_missing(runs, jobs, folder, c.at_once, until, _told)
    rows = t2i_rows(config, runs)
    folder.write_json("table.json", {"rows": rows})
    folder.write_text("table.md", t2i_markdown(rows))
    say(t2i_markdown(rows))
    say(f"{len([run for run in runs if run.finished])} of {len(runs)} runs; {folder.path / 'table.md'}")
    if failed:
        raise CheckpointError(
            f"{len(failed)} runs failed: {', '.join(failed)}; see {folder.path / 'logs'}, then go on with --resume"
            f" {folder.path}"
        )


def t2i_runs(config: T2iTableConfig, root: Path, configs: Path) -> list[RowRun]:
    """Every run, seed after seed, so that what is there after an interruption can be compared. Raises ConfigError if
    one of their configurations does not load."""
    c, runs = config.table, []
    named = configs / c.config
    for seed in c.seeds:
        for row, own in c.rows.items():
            beside = row in c.beside and seed == c.seeds[0]
            name = f"{row}-s{seed}"
            where = (f"run.root={root / 'rows'}", f"run.name={name}", f"run.seed={seed}")
            # the first ones start together; a look before training is the same for all others
            lent = (f"held_out.before_of={runs[0].folder}",) if len(runs) >= c.at_once else ()
            overrides = (*where, f"held_out.beside={str(beside).lower()}", *lent, *c.overrides, *own)
            load_config(T2iConfig, named, list(overrides))
            runs.append(RowRun(row, "", seed, "t2i", root / "rows" / name, named, overrides))
    return runs


def take_over(run: RowRun, table: Path) -> bool:
    """Copy the finished run of the same name from another table's folder, without its result, so that it is resumed
    under this table's budget. Returns whether there was one."""
    there, partial = table / "rows" / run.folder.name, run.folder.with_name(f"{run.folder.name}.partial")
    if not (there / RESULT_FILE).is_file():
        return False
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(there, partial, ignore=shutil.ignore_patterns(RESULT_FILE))
    partial.rename(run.folder)
    return True


def t2i_rows(config: T2iTableConfig, runs: list[RowRun]) -> list[dict]:
    """The rows of the finished ones of `runs`, and what was measured beside them."""
    rows, beside = [], []
    for name in config.table.rows:
        own = [run for run in runs if run.row == name and run.finished]
        if own:
            rows.append(row_of(name, [_facts(run) for run in own]))
            beside += [row for run in own for row in beside_rows(run.result())]
    return rows + beside


def _facts(run: RowRun) -> dict:
    result, c = run.result(), load_config(T2iConfig, run.folder / CONFIG_FILE, [])
    path = run.folder / LOOKS_FILE
    looks = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        "seed": run.seed,
        "images": result["steps"] * c.t2i.prompts_per_step * (c.t2i.group_size if c.is_policy else 1),
        "result": result,
        "alarm": next((look["step"] for look in looks if look["alarm"]), None),
    }


def _told(run: RowRun) -> str:
    figures = run.result()["figures"]
    return ", ".join(f"{n} {figures[n]['difference']:+.2f}" for n in ("reward/sum", "verifier/sum") if n in figures)
