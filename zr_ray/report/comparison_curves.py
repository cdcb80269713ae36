"""HPA over training steps, a panel per judge, a line per row: mean over seeds and the range between them (the paper's
figure 1)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import yaml

from zr_ray.config.table import TableConfig
from zr_ray.data.files import atomic_file
from zr_ray.records import AnnotatedImage
from zr_ray.report.compare import measure
from zr_ray.report.comparison_page import held_out, mu_of
from zr_ray.run.folder import CONFIG_FILE, ROWS_FILE, RunFolder
from zr_ray.run.table_rows import RowRun, base_rows

CURVES_FILE = "curves.png"


def curves(
    runs: Sequence[RowRun], items: Sequence[AnnotatedImage], config: TableConfig
) -> dict[str, dict[str, dict[int, list[float]]]]:
    """judge -> row -> step -> HPA of each seed, every point on the held-out items that the run's evaluations during
    training show.

    Step 0 is the judge's untrained row that answers in the same way, if the table has one."""
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    finished = [(run, json.loads((run.folder / ROWS_FILE).read_text())[-1]) for run in runs if run.finished]
    untrained = base_rows(config.table.rows)
    starts = {(run.judge, _reasons(row)): mu_of(row) for run, row in finished if run.row in untrained}
    for run, row in finished:
        if run.job == "evaluate":
            continue
        shown = yaml.safe_load((run.folder / CONFIG_FILE).read_text())["evaluation"]["items"]
        test = held_out(items[:shown], config)
        lines = run.metrics()
        points = {line["step"]: line["eval/hpa"] for line in lines if line.get("eval/hpa") is not None}
        points[lines[-1]["step"]] = measure([mu_of(row)[:shown]], test, "hpa")[0]
        if (run.judge, _reasons(row)) in starts:
            points[0] = measure([starts[run.judge, _reasons(row)][:shown]], test, "hpa")[0]
        for step, hpa in points.items():
            found[run.judge][run.row][step].append(hpa)
    return {judge: {row: dict(sorted(steps.items())) for row, steps in rows.items()} for judge, rows in found.items()}


def _reasons(row: dict) -> bool:
    return row["tokens_per_score"] > 1


def write_curves(
    folder: RunFolder, runs: Sequence[RowRun], items: Sequence[AnnotatedImage], config: TableConfig
) -> None:
    """Draw curves.png; nothing while no training run is finished. items: the evaluation split."""
    found = curves(runs, items, config)
    if not found:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(5.2 * len(found), 3.8), sharey=True, squeeze=False)
    for axes, (judge, rows) in zip(panels[0], found.items(), strict=True):
        for row, steps in rows.items():
            low, mean, high = (
                [100 * f(values) for values in steps.values()] for f in (min, lambda v: sum(v) / len(v), max)
            )
            (line,) = axes.plot(list(steps), mean, marker="o", markersize=3, linewidth=1.6, label=row)
            axes.fill_between(list(steps), low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_title(judge)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("HPA, % (on the items shown during training)")
    panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    with atomic_file(folder.path / CURVES_FILE) as file:
        figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
    pyplot.close(figure)
