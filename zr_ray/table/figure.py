"""HPA over training steps, a panel per judge, a line per row: mean over seeds and the range between them (the paper's figure 1)."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence

from zr_ray.run_folder import METRICS_FILE, RunFolder
from zr_ray.table.runs import RowRun

CURVES_FILE = "curves.png"


def curves(runs: Sequence[RowRun]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """judge -> row -> step -> HPA of each seed: evaluations during training, and the final one, on the whole held-out split, at the last step."""
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        if not run.finished or run.job == "evaluate":
            continue
        lines = [json.loads(line) for line in (run.folder / METRICS_FILE).read_text().splitlines()]
        points = {line["step"]: line["eval/hpa"] for line in lines if line.get("eval/hpa") is not None}
        points[lines[-1]["step"]] = run.result()["rows"][-1]["pooled"]["hpa"]
        for step, hpa in points.items():
            found[run.judge][run.row][step].append(hpa)
    return {judge: {row: dict(sorted(steps.items())) for row, steps in rows.items()} for judge, rows in found.items()}


def write_curves(folder: RunFolder, runs: Sequence[RowRun]) -> None:
    """Draw curves.png; nothing while no training run is finished."""
    found = curves(runs)
    if not found:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(5.2 * len(found), 3.8), sharey=True, squeeze=False)
    for axes, (judge, rows) in zip(panels[0], found.items(), strict=True):
        for row, steps in rows.items():
            low, mean, high = ([100 * f(values) for values in steps.values()] for f in (min, lambda v: sum(v) / len(v), max))
            (line,) = axes.plot(list(steps), mean, marker="o", markersize=3, linewidth=1.6, label=row)
            axes.fill_between(list(steps), low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_title(judge)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("HPA, % (last point: whole held-out split)")
    panels[0][-1].legend(fontsize=8)
    temporary = folder.path / f".{CURVES_FILE}"
    figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    pyplot.close(figure)
    os.replace(temporary, folder.path / CURVES_FILE)
