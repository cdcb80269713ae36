"""report.html of a chain: a row per stage with what it found, linked to the stage's own report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from zr_ray.report.page import page
from zr_ray.run.observe import duration
from zr_ray.run.result import value_text


def chain_page(title: str, stages: Sequence, times: Mapping[str, float]) -> str:
    """The page. stages: have name, folder, finished; links are relative, the page lies in the folder above theirs."""
    rows = []
    for stage in stages:
        links = " ".join(f'<a href="{escape(stage.name)}/{escape(p.name)}">{escape(p.name)}</a>' for p in _pages(stage))
        found = escape(_found(stage.name, stage.folder)) if stage.finished else "not finished"
        took = duration(times[stage.name]) if stage.name in times else ""
        rows.append(f"<tr><td>{escape(stage.name)}</td><td>{found}</td><td>{took}</td><td>{links}</td></tr>")
    head = "<tr><th>stage</th><th>what it found</th><th>time</th><th>its pages</th></tr>"
    return page(title, f"<h1>{escape(title)}</h1><table>{head}{''.join(rows)}</table>")


def _pages(stage) -> list[Path]:
    return sorted(stage.folder.glob("*.html")) if stage.finished else []


def _found(name: str, folder: Path) -> str:
    """A stage's figures in a line."""
    if name == "evaluate_reward":
        return "; ".join(_fitness(json.loads(path.read_text())) for path in sorted(folder.glob("fitness-*.json")))
    result = json.loads((folder / "result.json").read_text())
    if name != "t2i":
        rows = [f"{row['method']} {value_text(row['pooled'], 'hpa')}" for row in result["rows"]]
        return f"{result['status']}; HPA: {', '.join(rows)}"
    figures = {source: result["figures"].get(f"{source}/sum") for source in ("reward", "verifier", "referee")}
    changes = [f"{source} {_change(row)}" for source, row in figures.items() if row]
    return f"{result['status']}; {', '.join(changes)}"


def _change(row: Mapping[str, float]) -> str:
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['before']:.2f} to {row['after']:.2f} ({row['difference']:+.2f} {interval})"


def _fitness(found: Mapping) -> str:
    told = ", ".join(f"{name} {d['verdict']} ({d['accuracy']:.2f})" for name, d in found["dimensions"].items())
    most = max(map(int, found["best_of"]))
    return f"guidance {found['guidance']}: {told}; best of {most} gains {found['gain_share']:.2f} of the oracle's"
