"""From finished runs to the student's table: seeds pooled, intervals over prompts, claims with paired differences. Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.config_distill_table import TableConfig
from zr_ray.data.aggregate import aggregate_scores
from zr_ray.loops.distillation_journal import TEACHER_ROW
from zr_ray.loops.journal import ROWS_FILE
from zr_ray.records import AnnotatedImage
from zr_ray.report_evaluation import markdown_table
from zr_ray.compare import TestSet, agreement, difference, measure
from zr_ray.rubric import DIMENSIONS
from zr_ray.run_folder import RunFolder

TEACHER = "teacher"


def table_of(runs: Sequence, items: Sequence[AnnotatedImage], config: TableConfig, speed: dict[str, dict]) -> dict:
    """{"rows": [...], "claims": [...]} of the finished ones of `runs` (RowRun). speed: row name -> figures of `judge_speed`."""
    test, c = held_out(items, config), config.table
    answers: dict[str, dict[int, Tensor]] = {name: {} for name in (TEACHER, *c.rows)}
    tokens: dict[str, list[float]] = {name: [] for name in answers}
    for run in runs:
        if run.finished:
            for row in json.loads((run.folder / ROWS_FILE).read_text()):
                name = {run.job: run.row, TEACHER_ROW: TEACHER}.get(row["method"])
                if name is not None:
                    answers[name][run.seed] = _mu(row["mu"])
                    tokens[name].append(row["tokens_per_score"])
    rows = []
    for name, seeds in answers.items():
        if seeds:
            found = agreement(list(seeds.values()), test)
            per_seed = {seed: measure([mu], test, "hpa")[0] for seed, mu in seeds.items()}
            row = {
                "row": name,
                "seeds": sorted(seeds),
                "hpa_per_seed": per_seed,
                **found,
                "tokens_per_score": sum(tokens[name]) / len(tokens[name]),
            }
            if name in speed:
                row["seconds_per_score"] = 1 / speed[name]["images_per_s"] / len(DIMENSIONS)
            rows.append(row)
    claims = [{"better": a, "worse": b, **difference(answers[a], answers[b], test, "hpa")} for a, b in c.claims]
    for claim in claims:
        if claim["worse"] == TEACHER and claim["ci"] is not None:
            claim["verdict"] = near(claim, c.teacher_margin)
    return {"rows": rows, "claims": claims}


def held_out(items: Sequence[AnnotatedImage], config: TableConfig) -> TestSet:
    """The evaluation split as `compare` wants it."""
    human = torch.tensor(
        [[aggregate_scores(i.scores[d]) if d in i.scores else float("nan") for d in DIMENSIONS] for i in items], dtype=torch.float64
    )
    names = sorted({item.group for item in items})
    return TestSet(human, torch.tensor([names.index(item.group) for item in items]), config.table.bootstrap_resamples, config.run.seed)


def near(claim: dict, margin: float) -> str:
    """Verdict on "at most `margin` below": "holds" if the whole interval is above -margin, "does not hold" if below, else "cannot tell"."""
    if claim["ci"][0] > -margin:
        return f"holds (within {100 * margin:g} points)"
    return (
        f"does not hold (within {100 * margin:g} points)" if claim["ci"][1] < -margin else f"cannot tell (within {100 * margin:g} points)"
    )


def write_table(folder: RunFolder, table: dict) -> str:
    """Write table.json and table.md; returns the Markdown."""
    head = ["", "HPA %", "per seed", "margin HPA %", "PLCC", "SRCC", "tokens", "ms per score", *(f"HPA % {d}" for d in DIMENSIONS)]
    lines = []
    for row in table["rows"]:
        pooled, seconds = row["pooled"], row.get("seconds_per_score")
        seeds = " ".join(f"{100 * v:.1f}" for v in row["hpa_per_seed"].values()) if row["row"] != TEACHER else ""
        cells = [_cell(pooled, "hpa", 100), seeds, _cell(pooled, "margin_hpa", 100), _cell(pooled, "plcc"), _cell(pooled, "srcc")]
        cells += [f"{row['tokens_per_score']:.1f}", "-" if seconds is None else f"{1000 * seconds:.2f}"]
        lines.append([row["row"], *cells, *(_cell(row["dimensions"].get(d, {}), "hpa", 100) for d in DIMENSIONS)])
    parts = [
        markdown_table(head, lines),
        "95 % bootstrap intervals over prompts in brackets, seeds pooled. Seconds: one thread, batched, four dimensions.",
    ]
    claims = [
        [f"{x['better']} - {x['worse']}", _difference(x), " ".join(f"{100 * v:+.1f}" for v in x["per_seed"].values()), x["verdict"]]
        for x in table["claims"]
    ]
    if claims:
        parts.append(markdown_table(["HPA, points", "difference", "per seed", "verdict"], claims))
    text = "\n\n".join(parts) + "\n"
    folder.write_json("table.json", table)
    folder.write_text("table.md", text)
    return text


def _difference(claim: dict) -> str:
    if claim["difference"] is None:
        return "-"
    bounds = f" [{100 * claim['ci'][0]:+.1f}, {100 * claim['ci'][1]:+.1f}]" if claim["ci"] else ""
    return f"{100 * claim['difference']:+.1f}{bounds}"


def _cell(entry: dict, key: str, scale: float = 1) -> str:
    if entry.get(key) is None:
        return "-"
    digits, bounds = (1 if scale == 100 else 3), entry.get(f"{key}_ci")
    return f"{entry[key] * scale:.{digits}f}" + (f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else "")


def _mu(values: list[list[float | None]]) -> Tensor:
    """[I, D] float64, nan where the judge gave no score."""
    return torch.tensor([[float("nan") if v is None else v for v in item] for item in values], dtype=torch.float64)
