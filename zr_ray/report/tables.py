"""Tables and charts of an evaluation: Markdown for a log, sections for report.html. Reads `result.json` of
`jobs/evaluate.py`.

`line_chart` draws any curves with bands in the report's colors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from zr_ray.data.run_data import DATA_FILE
from zr_ray.report.figures import SERIES, SOFT, canvas, legend, svg_of
from zr_ray.run.folder import RunFolder
from zr_ray.run.result import undefined_text

AGREEMENT = (
    ("hpa", "HPA %", 100),
    ("margin_hpa", "margin HPA %", 100),
    ("tie_accuracy", "with ties %", 100),
    ("plcc", "PLCC", 1),
    ("plcc_logistic", "PLCC logistic", 1),
    ("srcc", "SRCC", 1),
    ("krcc", "KRCC", 1),
)
"""(key of a "pooled" or dimension entry, column title, factor)."""
DISTRIBUTION = (
    ("nll", "NLL, nats", 1),
    ("crps", "CRPS, points", 1),
    ("win_ece", "ECE of P(a>b)", 1),
    ("win_ece_votes", "ECE, single votes", 1),
    ("entropy", "entropy, nats", 1),
    ("outside_mass", "mass outside", 1),
)
SWAP = (
    ("follow", "follow", 1),
    ("order_follows", "order follows %", 100),
    ("trace_effect", "trace effect", 1),
    ("image_effect", "image effect", 1),
)

EXPLAINED = (
    "HPA: untied same-prompt pairs ranked as the annotators rank them, a predicted tie is wrong; with ties: all pairs,"
    " the tie threshold chosen on the other half of the prompts. NLL and CRPS are of the annotators' single votes. ECE:"
    " calibration error of P(a beats b) against the aggregated scores, and against single votes. In brackets the 95 %"
    " bootstrap interval over prompts."
)
SWAP_EXPLAINED = (
    "Each image scored under the reasoning trace of another image of its prompt. follow: 1, the score is what the trace"
    " says; 0, the trace changes nothing. order follows: pairs in which the image with the better trace wins; in the"
    " rest reasoning and score disagree. trace effect: mean score change with the same image and another trace; image"
    " effect: with the same trace and another image (rubric points)."
)


def markdown_tables(result: dict) -> str:
    """All tables of an evaluation as Markdown: pooled, distribution, each dimension, trace swap."""
    ceiling = [("noise ceiling", result["noise_ceiling"])] if result.get("noise_ceiling") else []
    rows = [(row["method"], row) for row in result["rows"]]
    costs = [("tokens_per_score", "tokens", 1), ("malformed_frac", "malformed %", 100)]
    parts = [
        f"# Evaluation of {result.get('judge', result['run_id'])}",
        EXPLAINED,
        "## Agreement, all dimensions",
        markdown_table(
            ["", *_titles(AGREEMENT), *_titles(costs)],
            [_cells(n, r["pooled"], AGREEMENT, r, costs) for n, r in rows + ceiling],
        ),
        "## Distributions, all dimensions",
        markdown_table(["", *_titles(DISTRIBUTION)], [_cells(n, r["pooled"], DISTRIBUTION) for n, r in rows]),
    ]
    for dimension in result["rows"][0]["dimensions"]:
        lines = [_cells(n, r["dimensions"].get(dimension, {}), AGREEMENT + DISTRIBUTION) for n, r in rows + ceiling]
        parts += [f"## {dimension.capitalize()}", markdown_table(["", *_titles(AGREEMENT + DISTRIBUTION)], lines)]
    if result.get("swap"):
        parts += [
            "## Swapped reasoning traces",
            SWAP_EXPLAINED,
            markdown_table(["", *_titles(SWAP), "pairs"], _swap_lines(result["swap"])),
        ]
    return "\n\n".join(parts) + "\n"


def read_warnings(run: RunFolder) -> list[str]:
    """What was found in the data of a run and could not be refused (`data.run_data`), one line each; empty for an older
    run."""
    path = run.path / DATA_FILE
    return json.loads(path.read_text())["warnings"] if path.is_file() else []


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left, the rest right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [header, rule, *lines]
    )


def evaluation_sections(result: dict) -> str:
    """Further sections of report.html: distributions, scaling curve, swap; empty when the rows hold none of it."""
    rows = [(row["method"], row) for row in result["rows"]]
    if not any("nll" in row["pooled"] for _, row in rows):
        return ""
    parts = ["<h2>Distributions</h2>", f'<p class="soft">{escape(EXPLAINED)}</p>']
    further = AGREEMENT[2:3] + AGREEMENT[4:5] + AGREEMENT[6:] + DISTRIBUTION
    parts.append(
        html_table(["", *_titles(further)], [_cells(name, row["pooled"], further, html=True) for name, row in rows])
    )
    curve = scaling_curve(result)
    if curve:
        parts.append(
            f'<h2>More samples</h2><div class="figures">{"".join(f"<figure>{svg}</figure>" for svg in curve)}</div>'
        )
    if result.get("swap"):
        table = html_table(["", *_titles(SWAP), "pairs"], _swap_lines(result["swap"], html=True))
        parts.append(f'<h2>Swapped reasoning traces</h2><p class="soft">{escape(SWAP_EXPLAINED)}</p>{table}')
    return "".join(parts)


def html_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of the report; the first cell of a line is escaped, the others are HTML."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "".join(
        f"<tr><td>{escape(line[0])}</td>{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>" for line in lines
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def scaling_curve(result: dict) -> list[str]:
    """HPA and PLCC over the number of averaged traces, as SVG; empty with fewer than two numbers."""
    rows = [row for row in result["rows"] if "mean of" in row["method"] or row["method"].endswith("1 sample")]
    if len(rows) < 2:
        return []
    charts = []
    for key, title, scale in (("hpa", "HPA, %", 100), ("plcc", "PLCC", 1)):
        points = [
            (row["samples"], *_scaled(row["pooled"], key, scale)) for row in rows if row["pooled"][key] is not None
        ]
        charts.append(
            line_chart({"mean of n": points}, "traces averaged", title, f"{title} over traces averaged", log_x=True)
        )
    return charts


def line_chart(
    series: dict[str, Sequence[tuple[float, float, float | None, float | None]]],
    x_label: str,
    y_label: str,
    name: str,
    log_x: bool = False,
) -> str:
    """Curves as SVG in the page's colors. series: label -> points (x, y, low, high); low and high, if known, are drawn
    as a band."""
    figure, axes = canvas()
    for n, (label, points) in enumerate(series.items()):
        color = SERIES[n % len(SERIES)] if len(series) > 1 else SERIES[1]
        x, y, low, high = zip(*points, strict=True)
        if all(bound is not None for bound in (*low, *high)):
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, y, color=color, label=label, linewidth=1.6, marker="o", markersize=3)
    if log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in series.values() for x, *_ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label, color=SOFT)
    if len(series) > 1:
        legend(figure, columns=3)
    return svg_of(figure, name)


def interval_text(
    value: float | None, bounds: Sequence[float] | None, scale: float = 1, html: bool = False, sign: bool = False
) -> str:
    """`81.4 [79.0, 83.7]`; three digits behind the point unless scaled to per cent."""
    if value is None:
        return "-"
    digits = 1 if scale == 100 else 3
    text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
    if bounds is None:
        return text
    within = (
        f"[{bounds[0] * scale:{'+' if sign else ''}.{digits}f}, {bounds[1] * scale:{'+' if sign else ''}.{digits}f}]"
    )
    return f"{text}<small>{within}</small>" if html else f"{text} {within}"


def _scaled(agreement: dict, key: str, scale: float) -> tuple[float, float | None, float | None]:
    low, high = agreement.get(f"{key}_ci") or (None, None)
    return agreement[key] * scale, None if low is None else low * scale, None if high is None else high * scale


def _titles(columns) -> list[str]:
    return [title for _, title, _ in columns]


def _cells(name: str, agreement: dict, columns, row: dict | None = None, costs=(), html: bool = False) -> list[str]:
    cells = [
        undefined_text(agreement, key)
        if agreement.get(key) is None
        else interval_text(agreement[key], agreement.get(f"{key}_ci"), scale, html)
        for key, _, scale in columns
    ]
    return [name, *cells, *("-" if row.get(key) is None else f"{row[key] * scale:.1f}" for key, _, scale in costs)]


def _swap_lines(swap: dict, html: bool = False) -> list[list[str]]:
    entries = [("pooled", swap["pooled"]), *swap["dimensions"].items()]
    return [[*_cells(name, found, SWAP, html=html), str(found["pairs"])] for name, found in entries]
