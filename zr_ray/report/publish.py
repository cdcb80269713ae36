"""What a finished run leaves in its trackers beside the curves: the table, the report, the cards of what was trained.

Each tracker takes what it can show: TensorBoard tables and cards, W&B and MLflow files as well.
Left out on purpose: weights; `jobs/push_to_hub.py` sends a judge folder where models are kept.
"""

from __future__ import annotations

from collections.abc import Callable

from zr_ray.config.sections import TrackedRunSection
from zr_ray.errors import ConfigError
from zr_ray.run.folder import RESULT_FILE, RunFolder
from zr_ray.run.observe import say
from zr_ray.run.trackers import Cell, Trackers

FILES = (
    ("report.html", "report"),
    (RESULT_FILE, "result"),
    ("judge/README.md", "judge_card"),
    ("generator/README.md", "generator_card"),
)
"""File of the run folder -> what trackers call it; those that a run does not have are left out."""
AGREEMENT = ("hpa", "margin_hpa", "plcc", "srcc")
CHANGE = ("before", "after", "difference", "low", "high")


def publish(run: RunFolder, settings: TrackedRunSection, say: Callable[[str], None] = say) -> None:
    """Hand table and files of a finished run to its trackers and end it there; one that does not answer any more is a
    warning, the run is done. Raises CheckpointError without a result.json."""
    result = run.read_result()
    try:
        trackers = Trackers(run, settings, say)
    except ConfigError as error:
        say(f"warning: table and report are not in the trackers: {error}")
        return
    trackers.table("table", *table_of(result))
    for name, kind in FILES:
        if (run.path / name).is_file():
            trackers.file(run.path / name, kind)
    trackers.close("FAILED" if result["status"] == "FAILED" else "FINISHED")


def table_of(result: dict) -> tuple[list[str], list[list[Cell]]]:
    """(columns, rows) of result.json: a method a row for judges, a figure a row for generators, fractions as they
    are."""
    if "rows" not in result:
        figures = result.get("figures", {})
        return ["figure", *CHANGE], [[name, *(row.get(key) for key in CHANGE)] for name, row in figures.items()]
    dimensions = list(result["rows"][0]["dimensions"])
    named = [(row["method"], row) for row in result["rows"]]
    if result.get("noise_ceiling"):
        named.append(("noise ceiling", result["noise_ceiling"]))
    rows: list[list[Cell]] = []
    for name, row in named:
        low, high = row["pooled"].get("hpa_ci") or (None, None)
        by_dimension = [row["dimensions"].get(d, {}).get("hpa") for d in dimensions]
        pooled = [row["pooled"].get(key) for key in AGREEMENT]
        rows.append([name, pooled[0], low, high, *pooled[1:], row.get("tokens_per_score"), *by_dimension])
    columns = ["method", "hpa", "hpa_low", "hpa_high", *AGREEMENT[1:], "tokens_per_score"]
    return [*columns, *(f"hpa/{d}" for d in dimensions)], rows
