"""Figures of the report as inline SVG whose colors are the page's CSS variables, so that they follow light and dark.

matplotlib draws with marker colors (`#fd0000` ink, `#fd0001` series 1, ...), which are replaced in the SVG text
afterwards.
Left out on purpose: interaction; TensorBoard has it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from html import escape

from zr_ray.rubric import PAPER

SERIES = tuple(f"#fd00{n:02x}" for n in range(8))
"""Series 0 is the muted one (before training), 1 the main one."""
_INK, SOFT, _LINE = "#fd0010", "#fd0011", "#fd0012"
_VARIABLES = {color: f"var(--s{n})" for n, color in enumerate(SERIES)} | {
    _INK: "var(--ink)",
    SOFT: "var(--soft)",
    _LINE: "var(--line)",
}


@dataclass(frozen=True)
class Panel:
    """One chart of training curves."""

    title: str
    caption: str
    metrics: tuple[str, ...]
    """Names or patterns (`time/*_s`); those that a run lacks are left out."""
    log: bool = False
    stacked: bool = False
    without: tuple[str, ...] = ()
    """Names that a pattern should not take."""


PANELS = (
    Panel(
        "Reward",
        "mean over the step's outputs, in [0, 1] per term",
        ("reward/*",),
        without=("reward/no_signal_frac", "reward/group_std"),
    ),
    Panel(
        "Signal inside a group",
        "standard deviation of the samples of one image: reward, and mu in rubric points",
        ("reward/group_std", "score/group_std"),
    ),
    Panel(
        "Groups without signal, empty traces",
        "fraction of groups whose samples all got the same reward, of outputs that reason about nothing",
        ("reward/no_signal_frac", "rollout/empty_frac"),
    ),
    Panel(
        "Agreement during training",
        "held-out items, one greedy trace each",
        ("eval/hpa", "eval/margin_hpa", "eval/plcc", "eval/srcc"),
    ),
    Panel("Losses", "Eq. (14) and its terms", ("loss/*",)),
    Panel("Score entropy", "of the score distribution, nats", ("score/entropy",)),
    Panel("KL to the reference", "per token, nats; falls to 0 at each refresh", ("policy/kl",)),
    Panel(
        "Malformed outputs and clipping",
        "fractions",
        ("rollout/malformed_frac", "policy/clip_frac", "score/outside_mass"),
    ),
    Panel(
        "Engine against learner",
        "log-prob difference after each push (nats), |ratio - 1| on-policy",
        ("sync/max_abs_diff", "policy/ratio_max_abs_diff"),
        log=True,
    ),
    Panel(
        "Seconds per phase",
        "of each step, stacked",
        ("time/*_s",),
        stacked=True,
        without=("time/step_s", "time/tokens_per_s"),
    ),
    Panel("Throughput", "generated tokens per second of rollout", ("time/tokens_per_s",)),
    Panel("Tokens per output", "mean length of a sampled output", ("rollout/tokens_per_sample",)),
    Panel("Gradient norm", "before clipping", ("learner/grad_norm",)),
    Panel("Learning rate", "of the step's last update", ("learner/lr",)),
)


def training_curves(metrics: Sequence[dict], panels: Sequence[Panel] = PANELS) -> list[tuple[Panel, str]]:
    """(panel, SVG) of every panel that the metrics have something for. metrics: lines of metrics.jsonl."""
    drawn = []
    for panel in panels:
        series = _series(panel, metrics)
        if series:
            drawn.append((panel, _curves(panel, series)))
    return drawn


def _series(panel: Panel, metrics: Sequence[dict]) -> dict[str, tuple[list[int], list[float]]]:
    names = list(dict.fromkeys(name for line in metrics for name in line))
    wanted = dict.fromkeys(
        name
        for pattern in panel.metrics
        for name in names
        if fnmatch(name, pattern) and name not in panel.without and name != "step"
    )
    series = {}
    for name in wanted:
        points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
        if points:
            series[name] = ([step for step, _ in points], [value for _, value in points])
    return series


def _curves(panel: Panel, series: dict[str, tuple[list[int], list[float]]]) -> str:
    figure, axes = canvas()
    short = {
        name: name.split("/", 1)[1].removesuffix("_s" if panel.stacked else "").replace("_", " ") for name in series
    }
    groups = {name.rpartition("/")[0] for name in short.values()}
    if len(groups) == 1:  # "verifier/realism" beside other figures of the verifier is "realism"
        short = {name: text.rpartition("/")[2] for name, text in short.items()}
    if panel.stacked:
        steps = sorted({step for x, _ in series.values() for step in x})
        heights = [[dict(zip(x, y, strict=True)).get(step, 0.0) for step in steps] for x, y in series.values()]
        axes.stackplot(steps, heights, colors=_colors(series), labels=short.values(), linewidth=0)
        axes.set_ylim(bottom=0)
    else:
        for (name, (x, y)), color in zip(series.items(), _colors(series), strict=True):
            marker = {"marker": "o", "markersize": 3} if len(x) < 12 else {}
            axes.plot(
                x,
                [max(v, 1e-12) for v in y] if panel.log else y,
                color=color,
                label=short[name],
                linewidth=1.6,
                **marker,
            )
        if panel.log:
            axes.set_yscale("log")
    axes.set_xlabel("step")
    if len(series) > 1:
        legend(figure, columns=3)
    return svg_of(figure, f"{panel.title}: {', '.join(short.values())} over training steps")


def agreement_chart(result: dict) -> str:
    """HPA with its interval, pooled and per dimension, one row per method; the noise ceiling as a bar."""
    names = ["pooled", *result["rows"][0]["dimensions"]]
    rows, ceiling = result["rows"], result.get("noise_ceiling")
    figure, axes = canvas(width=4.8, height=1.1 + 0.17 * len(names) * (len(rows) + 1))
    for place, name in enumerate(names):
        if ceiling and (best := _of(ceiling, name)) and best["hpa"] is not None:
            top = place * (len(rows) + 1) - 0.5
            axes.vlines(
                best["hpa"] * 100,
                top,
                top + len(rows),
                color=_INK,
                linewidth=2,
                label="noise ceiling" if place == 0 else None,
            )
        for n, row in enumerate(rows):
            agreement = _of(row, name)
            if agreement is None or agreement["hpa"] is None:
                continue
            y, x = place * (len(rows) + 1) + n, agreement["hpa"] * 100
            low, high = (100 * bound for bound in agreement.get("hpa_ci") or (agreement["hpa"],) * 2)
            axes.plot(
                [low, high], [y, y], color=_row_color(n, len(rows)), linewidth=5, alpha=0.35, solid_capstyle="round"
            )
            axes.plot(
                [x], [y], "o", color=_row_color(n, len(rows)), markersize=6, label=row["method"] if place == 0 else None
            )
    axes.axvline(50, color=SOFT, linewidth=1, linestyle=(0, (3, 3)), label="chance")
    axes.set_yticks([place * (len(rows) + 1) + (len(rows) - 1) / 2 for place in range(len(names))], names)
    axes.set_ylim(len(names) * (len(rows) + 1) - 1, -1)
    axes.set_xlabel("HPA, %")
    axes.grid(axis="y", visible=False)
    legend(figure, columns=3)
    return svg_of(figure, "HPA by dimension and method with 95 % intervals")


def reliability_charts(result: dict) -> list[tuple[str, str]]:
    """(dimension, SVG): mean human score against mean mu per bin, a perfectly calibrated judge on the diagonal."""
    rows = [row for row in result["rows"] if row.get("reliability")]
    names = list(dict.fromkeys(name for row in rows for name in row["reliability"]))
    bins = result.get("bins") or PAPER.bins
    room = (bins[-1] - bins[0]) / 20
    span, ticks = (bins[0] - room, bins[-1] + room), _ticks(bins)
    charts = []
    for name in names:
        figure, axes = canvas(width=3.6, height=3.3)
        ends = [bins[0], bins[-1]]
        axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        for n, row in enumerate(rows):
            curve = row["reliability"].get(name)
            if not curve or not curve["predicted"]:
                continue
            color, largest = _row_color(n, len(rows)), max(curve["count"])
            axes.plot(curve["predicted"], curve["human"], color=color, linewidth=1.4, label=row["method"])
            axes.scatter(
                curve["predicted"],
                curve["human"],
                s=[8 + 28 * count / largest for count in curve["count"]],
                color=color,
                linewidth=0,
            )
        axes.set(xlim=span, ylim=span, xticks=ticks, yticks=ticks, xlabel="judge's mu", ylabel="human score")
        legend(figure, columns=2)
        charts.append((name, svg_of(figure, f"Reliability in {name}")))
    return charts


def _ticks(bins: Sequence[float]) -> list[float]:
    """Marks of an axis over the scale: its whole numbers, or its ends where those are none or too many."""
    whole = [s for s in bins if s == round(s)]
    return whole if 2 <= len(whole) <= 10 else [bins[0], bins[-1]]


def distribution_bars(
    q: Sequence[float], human: float | None, mu: float, mu_before: float | None, bins: Sequence[float] = PAPER.bins
) -> str:
    """The score distribution as a bar per bin, with human score, mu and, if known, mu before training marked. Written
    by hand: it is small."""
    left, width, height, base = 8, 304, 92, 84
    half = min(13.0, 117 / len(bins))  # of a bar; nine of them leave some room between
    step = (bins[-1] - bins[0]) / (len(bins) - 1)

    def at(score: float) -> float:
        return left + width * ((score - bins[0]) / step + 0.5) / len(bins)

    top = max(max(q), 1e-9)
    parts = []
    for score, p in zip(bins, q, strict=True):
        bar = (base - 22) * p / top
        parts.append(
            f'<rect x="{at(score) - half:.1f}" y="{base - bar:.1f}" width="{2 * half:.3g}" height="{bar:.1f}" rx="2"'
            f' fill="var(--s1)" opacity=".75"><title>{score:g}: {p:.3f}</title></rect>'
        )
        parts.append(
            f'<text x="{at(score):.1f}" y="{base + 15}" text-anchor="middle" font-size="11"'
            f' fill="var(--soft)">{score:g}</text>'
        )
    parts.append(f'<path d="M{left} {base}H{left + width}" stroke="var(--line)"/>')
    marks = [
        ("mu-before", mu_before, "var(--s0)", "3 3"),
        ("mu", mu, "var(--s1)", ""),
        ("human", human, "var(--s2)", ""),
    ]
    for name, score, color, dash in marks:
        if score is not None:
            dashes = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(
                f'<path class="{name}" d="M{at(score):.1f} 14V{base}" stroke="{color}" stroke-width="2"{dashes}/>'
            )
            if name == "human":
                parts.append(f'<path d="M{at(score):.1f} 15l-6 -9h12z" fill="{color}"/>')
    label = f"score distribution; mu {mu:.2f}" + (f", human {human:.2f}" if human is not None else "")
    return f'<svg viewBox="0 0 320 {height + 12}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _of(scores: dict, name: str) -> dict | None:
    return scores["pooled"] if name == "pooled" else scores["dimensions"].get(name)


def _row_color(n: int, rows: int) -> str:
    """The baseline muted, the last row in the main color, what is between in others."""
    return SERIES[0] if n == 0 else SERIES[1] if n == rows - 1 else SERIES[1 + n % (len(SERIES) - 1)]


def _colors(series: Iterable) -> list[str]:
    return [SERIES[1 + n % (len(SERIES) - 1)] for n, _ in enumerate(series)]


def canvas(width: float = 4.4, height: float = 2.7):
    """A figure without a display, in the page's type size: at 4.4 inches one SVG unit is about one CSS pixel in a
    phone's column."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": SOFT,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": _INK,
        "axes.grid": True,
        "grid.color": _LINE,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "axes.formatter.useoffset": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def legend(figure, columns: int) -> None:
    """Above the axes, where it hides no data."""
    figure.legend(
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0,
    )


def svg_of(figure, label: str) -> str:
    """The figure as an <svg> element with the page's colors and a name for screen readers."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1).strip()
