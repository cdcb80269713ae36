"""From finished runs to the table: per judge one row per method with seeds pooled, intervals over prompts, claims with
paired differences, what swapped reasoning traces did. Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.config.table import TEACHER, TableConfig
from zr_ray.functional.intervals import defined
from zr_ray.judging.evaluate import human_scores, prompt_index
from zr_ray.models.judge_text import judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.report.compare import TestSet, agreement_over_seeds, difference, measure
from zr_ray.report.tables import markdown_table
from zr_ray.rubric import Rubric, ScoringFormat
from zr_ray.run.folder import ROWS_FILE, RunFolder
from zr_ray.run.result import TEACHER_ROW, sampled_row, undefined_text
from zr_ray.run.table_rows import RowRun, base_rows

Answers = dict[str, dict[int, Tensor]]
"""Row name -> seed -> [I, D] mu."""


def table_of(
    runs: Sequence[RowRun], items: Sequence[AnnotatedImage], config: TableConfig, speed: dict[str, dict]
) -> dict:
    """{"rows": [...], "claims": [...], "swaps": [...]} of the finished ones of `runs`. speed: row name -> figures of
    `judge_speed`."""
    test, finished = held_out(items, config), [run for run in runs if run.finished]
    table: dict[str, list[dict]] = {"rows": [], "claims": [], "swaps": []}
    for judge in config.table.judges:
        own = [run for run in finished if run.judge == judge]
        answers, tokens = _answers(own, config)
        sampled = _sampled(own)
        for name, seeds in answers.items():
            minutes = [run.result()["wall_s"] / 60 for run in own if run.row == name]
            steps = [sum(line.get("time/step_s", 0.0) for line in run.metrics()) / 60 for run in own if run.row == name]
            row = {
                "judge": judge,
                "row": name,
                "seeds": sorted(seeds),
                **agreement_over_seeds(_distinct(name, seeds, config), test),
                "hpa_per_seed": {seed: defined(measure([mu], test, "hpa")[0]) for seed, mu in seeds.items()},
                "tokens_per_score": sum(tokens[name]) / len(tokens[name]),
                "minutes": sum(minutes) / len(minutes) if minutes else None,
                "step_minutes": sum(steps) / len(steps) if any(steps) else None,
            }
            if name in sampled:
                row["sampled"] = agreement_over_seeds(sampled[name], test)["pooled"]
            if name in speed:
                row["seconds_per_score"] = 1 / speed[name]["images_per_s"] / len(test.rubric.dimensions)
            table["rows"].append(row)
        for better, worse in config.table.claims:
            claim = {"judge": judge, "better": better, "worse": worse}
            claim |= difference(answers.get(better, {}), answers.get(worse, {}), test, "hpa")
            if worse == TEACHER and claim["ci"] is not None:
                claim["verdict"] = near(claim, config.table.teacher_margin)
            table["claims"].append(claim)
        table["swaps"] += [
            {"judge": judge, "row": config.table.rows[run.row].of, "seed": run.seed, **run.result()["swap"]["pooled"]}
            for run in own
            if run.result().get("swap")
        ]
    return table


def _answers(runs: Sequence[RowRun], config: TableConfig) -> tuple[Answers, dict[str, list[float]]]:
    """mu and tokens per score of the rows, in the order of the table, the teacher first; a row that trains nothing is
    every seed's."""
    c = config.table
    answers: Answers = {name: {} for name in (TEACHER, *c.rows)}
    tokens: dict[str, list[float]] = {name: [] for name in answers}
    for run in runs:
        if c.rows[run.row].of:
            continue
        judged = json.loads((run.folder / ROWS_FILE).read_text())
        of_teacher = [row for row in judged if row["method"] == TEACHER_ROW]
        for name, row in [(run.row, judged[-1])] + [(TEACHER, row) for row in of_teacher[-1:]]:
            tokens[name].append(row["tokens_per_score"])
            for seed in c.seeds if run.row in base_rows(c.rows) else (run.seed,):
                answers[name][seed] = mu_of(row)
    return {name: seeds for name, seeds in answers.items() if seeds}, tokens


def _sampled(runs: Sequence[RowRun]) -> dict[str, list[Tensor]]:
    """Row name -> mu per seed with sampled traces, of rows whose runs have it (`evaluation.sampled`)."""
    found: dict[str, list[Tensor]] = {}
    for run in runs:
        judged = json.loads((run.folder / ROWS_FILE).read_text())
        for row in judged:
            if row["method"] == sampled_row(judged[-1]["method"]):
                found.setdefault(run.row, []).append(mu_of(row))
    return found


def _distinct(name: str, seeds: dict[int, Tensor], config: TableConfig) -> list[Tensor]:
    """Predictions of a row without repetitions."""
    return list(seeds.values())[: 1 if name in base_rows(config.table.rows) else None]


def held_out(items: Sequence[AnnotatedImage], config: TableConfig) -> TestSet:
    """The evaluation split as `compare` wants it."""
    rubric = rubric_of(config)
    return TestSet(
        human_scores(items, rubric),
        prompt_index([item.group for item in items]),
        config.table.bootstrap_resamples,
        config.run.seed,
        rubric,
    )


def rubric_of(config: TableConfig) -> Rubric:
    """What the table's judges score; the same for all of them (`make_table` refuses others)."""
    return ScoringFormat.load(judge_folder(next(iter(config.table.judges.values())))).rubric


def near(claim: dict, margin: float) -> str:
    """Verdict on "at most `margin` below": "holds" if the whole interval is above -margin, "does not hold" if below,
    else "cannot tell"."""
    low, high = claim["ci"]
    said = "holds" if low > -margin else "does not hold" if high < -margin else "cannot tell"
    return f"{said} (within {100 * margin:g} points)"


def write_table(folder: RunFolder, table: dict) -> str:
    """Write table.json and table.md; returns the Markdown."""
    several = len({row["judge"] for row in table["rows"]}) > 1
    parts = [
        _rows_table(table["rows"], several),
        (
            "95 % bootstrap intervals over prompts in brackets, seeds pooled. Minutes: of a whole run with its start,"
            " labels and evaluation, and of its training steps alone; means over seeds."
        ),
    ]
    if table["claims"]:
        claims = [
            [
                *([x["judge"]] if several else []),
                f"{x['better']} - {x['worse']}",
                _difference(x),
                " ".join("-" if v is None else f"{100 * v:+.1f}" for v in x["per_seed"].values()),
                x["verdict"],
            ]
            for x in table["claims"]
            if several or x["difference"] is not None
        ]
        parts.append(
            markdown_table(
                [*(["judge"] if several else []), "HPA, points", "difference", "per seed", "verdict"], claims
            )
        )
    if table["swaps"]:
        swaps = [
            [x["judge"], x["row"], str(x["seed"]), _cell(x, "follow"), _cell(x, "order_follows", 100), str(x["pairs"])]
            for x in table["swaps"]
        ]
        parts += [
            markdown_table(
                ["judge", "row", "seed", "score follows a swapped trace", "pair order follows, %", "pairs"], swaps
            ),
            (
                "1: the score is what the trace says, whatever the image; 0: the trace changes nothing. "
                "Where the order does not follow, reasoning and score disagree."
            ),
        ]
    text = "\n\n".join(parts) + "\n"
    folder.write_json("table.json", table)
    folder.write_text("table.md", text)
    return text


def _rows_table(rows: Sequence[dict], several: bool) -> str:
    dimensions = list(dict.fromkeys(d for row in rows for d in row["dimensions"]))
    timed = any("seconds_per_score" in row for row in rows)
    sampled = any("sampled" in row for row in rows)
    head = ["judge"] if several else []
    head += [
        "",
        "HPA %",
        *(["sampled traces %"] if sampled else []),
        "per seed",
        "margin HPA %",
        "PLCC",
        "SRCC",
        "tokens",
        "minutes",
        "in steps",
        *(["ms per score"] if timed else []),
    ]
    lines = []
    for row in rows:
        pooled, per_seed = row["pooled"], list(dict.fromkeys(row["hpa_per_seed"].values()))
        seeds = " ".join("-" if v is None else f"{100 * v:.1f}" for v in per_seed) if len(per_seed) > 1 else ""
        cells = [
            row["row"],
            _cell(pooled, "hpa", 100),
            *([_cell(row["sampled"], "hpa", 100) if "sampled" in row else ""] if sampled else []),
            seeds,
            _cell(pooled, "margin_hpa", 100),
            _cell(pooled, "plcc"),
            _cell(pooled, "srcc"),
        ]
        cells.append(f"{row['tokens_per_score']:.1f}")
        cells += ["" if row[key] is None else f"{row[key]:.1f}" for key in ("minutes", "step_minutes")]
        cells += [f"{1000 * row['seconds_per_score']:.2f}" if "seconds_per_score" in row else ""] if timed else []
        lines.append(
            [
                *([row["judge"]] if several else []),
                *cells,
                *(_cell(row["dimensions"].get(d, {}), "hpa", 100, False) for d in dimensions),
            ]
        )
    return markdown_table([*head, *dimensions], lines)


def _difference(claim: dict) -> str:
    if claim["difference"] is None:
        return "no pairs" if claim["per_seed"] else "-"
    bounds = f" [{100 * claim['ci'][0]:+.1f}, {100 * claim['ci'][1]:+.1f}]" if claim["ci"] else ""
    return f"{100 * claim['difference']:+.1f}{bounds}"


def _cell(entry: dict, key: str, scale: float = 1, interval: bool = True) -> str:
    if entry.get(key) is None:
        return undefined_text(entry, key)
    digits, bounds = (1 if scale == 100 else 3), entry.get(f"{key}_ci") if interval else None
    return f"{entry[key] * scale:.{digits}f}" + (
        f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else ""
    )


def mu_of(row: dict) -> Tensor:
    """[I, D] float64 of a row in rows.json, nan where the judge gave no score."""
    return torch.tensor([[float("nan") if v is None else v for v in item] for item in row["mu"]], dtype=torch.float64)
