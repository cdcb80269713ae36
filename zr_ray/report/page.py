"""report.html of a run: one self-contained page (no network, no script) with headline, table, curves, reliability and
examples.

Reads from the run folder: result.json (result.py), metrics.jsonl, configuration, environment.json and
examples/examples.json, a list of

    {"image": file name inside examples/, "prompt": text, "dimension": name, "reasoning": text ("" for a direct answer),
     "bins": scores of the scale (absent: the paper's), "q": their probabilities, "mu": expected score, "mu_before": mu
     before training or null, "human": aggregated human score or null, "method": the row it belongs to}

Everything from models and data is escaped, and the page forbids itself scripts and network by its content security
policy.
Left out on purpose: comparing several runs; `result.json` is made for that.
"""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path

import numpy as np
import yaml

from zr_ray.report.figures import agreement_chart, distribution_bars, reliability_charts, training_curves
from zr_ray.report.tables import evaluation_sections, read_warnings
from zr_ray.rubric import PAPER
from zr_ray.run.folder import CONFIG_FILE, RunFolder
from zr_ray.run.observe import duration
from zr_ray.run.result import value_text

STYLE = Path(__file__).parents[1] / "assets" / "report.css"
_LARGEST_IMAGE = 384
"""Pixels; larger examples are scaled down so that the page stays small."""
_COLUMNS = (("hpa", "HPA, %", 100), ("margin_hpa", "margin HPA, %", 100), ("plcc", "PLCC", 1), ("srcc", "SRCC", 1))


def write_report(run: RunFolder) -> Path:
    """Write report.html into the run folder and return its path. Raises CheckpointError when the run has no
    result.json."""
    result, metrics = run.read_result(), run.read_metrics()
    environment = json.loads((run.path / "environment.json").read_text())
    examples_file = run.path / "examples" / "examples.json"
    examples = json.loads(examples_file.read_text()) if examples_file.is_file() else []
    data = yaml.safe_load((run.path / CONFIG_FILE).read_text()).get("data", {}).get("path")
    source = f"Data: {data}." if data else "Data: the built-in rubric world; its images and annotators are simulated."
    sections = [
        _headline(result, environment),
        _tables(result, source),
        _warnings(read_warnings(run)),
        evaluation_sections(result),
        _curves(metrics),
        _reliability(result),
        _examples(examples, examples_file.parent),
    ]
    return run.write_text("report.html", page(f"{result['job']} {result['run_id']}", "".join(sections)))


def page(title: str, sections: str) -> str:
    """A self-contained page in the report's style that allows itself neither scripts nor network. sections: HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        ' initial-scale=1">'
        """<meta http-equiv="Content-Security-Policy" """
        """content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
        f"<title>{escape(title)}</title><style>{STYLE.read_text()}</style></head><body><main>{sections}</main></body></html>\n"
    )


def format_table(result: dict) -> str:
    """The plain-text table at the end of a job log: a line per method with intervals and differences, then HPA per
    dimension."""
    header = ["", "HPA %", "95 % interval", "vs first", "margin", "PLCC", "SRCC", "tokens", "malformed"]
    baseline = result["rows"][0]
    rows = [header]
    for name, row in _named_rows(result):
        pooled = row["pooled"]
        rows.append(
            [
                name,
                value_text(pooled, "hpa", 100),
                _interval(pooled.get("hpa_ci"), 100),
                _difference(pooled, baseline["pooled"], row is baseline),
            ]
            + [
                value_text(pooled, "margin_hpa", 100),
                value_text(pooled, "plcc"),
                value_text(pooled, "srcc"),
                _number(row.get("tokens_per_score"), 1, 1),
            ]
            + [_number(row.get("malformed_frac"), 100) + (" %" if row.get("malformed_frac") is not None else "")]
        )
    dimensions = list(baseline["dimensions"])
    by_dimension = [["HPA % by dimension", *dimensions]]
    for name, row in _named_rows(result):
        by_dimension.append([name, *(_with_difference(row, baseline, dimension) for dimension in dimensions)])
    return _align(rows) + "\n\n" + _align(by_dimension)


def _with_difference(row: dict, baseline: dict, dimension: str) -> str:
    agreement = row["dimensions"].get(dimension, {})
    difference = _difference(agreement, baseline["dimensions"][dimension], row is baseline)
    return value_text(agreement, "hpa", 100) + (f" ({difference})" if difference else "")


def _align(rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _named_rows(result: dict) -> list[tuple[str, dict]]:
    rows = [(row["method"], row) for row in result["rows"]]
    return rows + ([("noise ceiling", result["noise_ceiling"])] if result.get("noise_ceiling") else [])


def _number(value: float | None, scale: float = 1, digits: int | None = None) -> str:
    return "-" if value is None else f"{value * scale:.{(1 if scale == 100 else 3) if digits is None else digits}f}"


def _per_cent(pooled: dict) -> str:
    return value_text(pooled, "hpa", 100) + (" %" if pooled["hpa"] is not None else "")


def _interval(bounds: list[float] | None, scale: float = 1) -> str:
    return f"[{_number(bounds[0], scale)}, {_number(bounds[1], scale)}]" if bounds else ""


def _difference(agreement: dict, baseline: dict, is_baseline: bool, key: str = "hpa", scale: float = 100) -> str:
    if is_baseline or agreement.get(key) is None or baseline.get(key) is None:
        return ""
    return f"{(agreement[key] - baseline[key]) * scale:+.{1 if scale == 100 else 3}f}"


def _headline(result: dict, environment: dict) -> str:
    first, last, ceiling = result["rows"][0], result["rows"][-1], result.get("noise_ceiling")
    tiles = [
        ("pooled HPA", _per_cent(last["pooled"]), f"{last['method']} {_interval(last['pooled'].get('hpa_ci'), 100)}")
    ]
    verdict = f"{last['method']}: pooled HPA {_per_cent(last['pooled'])}"
    if last is not first and (gain := _difference(last["pooled"], first["pooled"], False)):
        apart = _apart(first["pooled"].get("hpa_ci"), last["pooled"].get("hpa_ci"))
        verdict += f", {gain} points against {first['method']}"
        tiles.append(
            (
                f"against {first['method']}",
                f"{gain}",
                f"points; 95 % intervals {'do not overlap' if apart else 'overlap'}",
            )
        )
    if ceiling and ceiling["pooled"]["hpa"] is not None and last["pooled"]["hpa"] is not None:
        gap = (ceiling["pooled"]["hpa"] - last["pooled"]["hpa"]) * 100
        tiles.append(("noise ceiling", _per_cent(ceiling["pooled"]), f"{gap:.1f} points above {last['method']}"))
    resumed = f", resumed {len(environment['resumed'])} times" if environment["resumed"] else ""
    tiles.append(("wall time", duration(result["wall_s"]), result["status"] + resumed))
    started = environment["started"]
    git, hardware = started["git"], started["hardware"]
    changed = " with uncommitted changes" if git["dirty"] is True else ""
    facts = [
        f"run {result['run_id']}, started {started['time']}",
        f"git {git['commit'][:12]}{changed}",
        f"{hardware['cores']} cores of {hardware['cpu']}, {hardware['memory_gib']} GiB"
        + "".join(f", {gpu}" for gpu in hardware["gpus"]),
        ", ".join(f"{name} {version}" for name, version in started["packages"].items()),
    ]
    tile_html = "".join(
        f'<div class="tile"><span class="soft">{escape(a)}</span><b>{escape(b)}</b><span'
        f' class="soft">{escape(c)}</span></div>'
        for a, b, c in tiles
    )
    return (
        f'<p class="eyebrow">zr_ray · {escape(result["job"])}</p><h1>{escape(verdict)}</h1>'
        f'<div class="tiles">{tile_html}</div><p class="facts">{"<br>".join(map(escape, facts))}</p>'
    )


def _apart(one: list[float] | None, other: list[float] | None) -> bool:
    return bool(one and other and (one[1] < other[0] or other[1] < one[0]))


def _tables(result: dict, source: str) -> str:
    baseline = result["rows"][0]
    body = []
    for name, row in _named_rows(result):
        cells = "".join(
            _cell(row["pooled"], baseline["pooled"], row is baseline, key, scale) for key, _, scale in _COLUMNS
        )
        extra = (
            f"<td>{_number(row.get('tokens_per_score'), 1, 1)}</td><td>{_number(row.get('malformed_frac'), 100)}</td>"
        )
        body.append(_table_row(name, cells + extra, row is result.get("noise_ceiling")))
    head = "".join(
        f"<th>{title}</th>" for title in ["", *(title for _, title, _ in _COLUMNS), "tokens per score", "malformed, %"]
    )
    dimensions = list(baseline["dimensions"])
    by_dimension = []
    for name, row in _named_rows(result):
        cells = "".join(
            _cell(row["dimensions"].get(d, {}), baseline["dimensions"][d], row is baseline, "hpa", 100)
            for d in dimensions
        )
        by_dimension.append(_table_row(name, cells, row is result.get("noise_ceiling")))
    dimension_head = "<th>HPA, %</th>" + "".join(f"<th>{escape(d)}</th>" for d in dimensions)
    pooled = baseline["pooled"]
    counted = (
        f" {pooled['pairs']:,} pairs of {pooled['items']:,} scores."
        if pooled.get("pairs") and pooled.get("items")
        else ""
    )
    return (
        f"<h2>Agreement with the annotators</h2><p class=soft>Under each value its 95 % bootstrap interval (resampling"
        f" prompts) and the "
        f"difference to {escape(baseline['method'])}. The noise ceiling is what a judge that knows the true score would"
        f" get.{counted} "
        f"{escape(source)}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'
        f'<div class="split"><figure>{agreement_chart(result)}</figure>'
        f'<div class="scroll"><table><tr>{dimension_head}</tr>{"".join(by_dimension)}</table></div></div>'
    )


def _warnings(lines: list[str]) -> str:
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>Warnings about the data</h2><ul class="soft">{listed}</ul>' if lines else ""


def _table_row(name: str, cells: str, is_ceiling: bool) -> str:
    return f"<tr{' class=ceiling' if is_ceiling else ''}><td>{escape(name)}</td>{cells}</tr>"


def _cell(agreement: dict, baseline: dict, is_baseline: bool, key: str, scale: float) -> str:
    interval = _interval(agreement.get(f"{key}_ci"), scale)
    difference = _difference(agreement, baseline, is_baseline, key, scale)
    tone = "bad" if difference.startswith("-") else "good"
    return (
        f"<td>{value_text(agreement, key, scale)}{f'<small>{interval}</small>' if interval else ''}"
        f"{f'<small class={tone}>{difference}</small>' if difference else ''}</td>"
    )


def _curves(metrics: list[dict]) -> str:
    figures = [
        f"<figure><h3>{escape(panel.title)}</h3><figcaption>{escape(panel.caption)}</figcaption>{svg}</figure>"
        for panel, svg in training_curves(metrics)
    ]
    return f'<h2>Training</h2><div class="figures">{"".join(figures)}</div>' if figures else ""


def _reliability(result: dict) -> str:
    figures = [f"<figure><h3>{escape(name)}</h3>{svg}</figure>" for name, svg in reliability_charts(result)]
    if not figures:
        return ""
    explained = (
        "Mean human score of questions with similar mu. On the dashed line the judge means what it says; a flat curve"
        " tells nothing."
    )
    return f'<h2>Reliability</h2><p class="soft">{explained}</p><div class="figures">{"".join(figures)}</div>'


def _examples(examples: list[dict], folder: Path) -> str:
    if not examples:
        return ""
    cards = "".join(_example(example, folder) for example in examples)
    explained = (
        "Bars: the judge's distribution over the scores. Lines: its mean mu, mu before training (dashed), the"
        " human score (triangle)."
    )
    return f'<h2>Examples</h2><p class="soft">{explained}</p><div class="examples">{cards}</div>'


def _example(example: dict, folder: Path) -> str:
    before, human = example.get("mu_before"), example.get("human")
    scores = [("human", human), ("before", before), (example["method"], example["mu"])]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{score:.2f}</dd>" for name, score in scores if score is not None)
    reasoning = f'<div class="reasoning">{escape(example["reasoning"])}</div>' if example["reasoning"] else ""
    return (
        f'<article class="example"><div class="top">{_image(folder / Path(example["image"]).name)}'
        f'<div><span class="tag">{escape(example["dimension"])}</span>'
        f"<q>{escape(example['prompt'])}</q><dl>{listed}</dl></div></div>{reasoning}"
        f"{distribution_bars(example['q'], human, example['mu'], before, example.get('bins', PAPER.bins))}</article>"
    )


def _image(path: Path) -> str:
    from zr_ray.data.images import load_image

    return picture(load_image(path))  # as the judge saw it: upright, transparent pixels on white


def picture(pixels: np.ndarray) -> str:
    """[H, W, 3] uint8 as an `<img>` with its data in it; small ones are enlarged pixel by pixel, so that what the judge
    saw is what is shown, large ones scaled down."""
    from PIL import Image

    image = Image.fromarray(pixels)
    small = max(image.size) <= 128
    image.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    return (
        f'<img class="{"pixels" if small else ""}" alt=""'
        f' src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )
