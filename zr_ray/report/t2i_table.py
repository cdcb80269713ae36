"""Text-to-image runs as rows of one table: what rose, and what of it the reward cannot have made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from zr_ray.report.tables import markdown_table

CHANGES = (
    ("reward/sum", "reward"),
    ("referee/sum", "referee"),
    ("verifier/sum", "verifier"),
    ("verifier/match", "object match"),
    ("verifier/clutter", "clutter"),
)
"""(figure, column): its change against the untrained generator."""
DIVERSITY = "image/seed_distance"
EXPLAINED = (
    "Changes against the untrained generator on the same held-out prompts and noise, means over the training seeds; in"
    " brackets the 95 % interval over prompts, its ends averaged over the seeds, then the seeds one by one. seed"
    " distance: of what it was. first alarm: step of the first look at which the hacking watch spoke, of each seed; -"
    " for none."
)


def row_of(name: str, runs: Sequence[dict]) -> dict:
    """One row. runs: of each seed {"seed", "images", "result": content of result.json, "alarm": step of the first alarm
    or None}."""
    results = [run["result"] for run in runs]
    row: dict = {"row": name, "seeds": [run["seed"] for run in runs]}
    for figure, _ in CHANGES:
        rows = [r["figures"][figure] for r in results if figure in r["figures"]]
        if rows:
            row[figure] = {key: mean(r[key] for r in rows) for key in ("difference", "low", "high")}
            row[figure]["each"] = [r["difference"] for r in rows]
    gsb = [r["gsb"]["referee/sum"]["gsb"] for r in results if "referee/sum" in r["gsb"]]
    distances = [r["figures"][DIVERSITY] for r in results if DIVERSITY in r["figures"]]
    return row | {
        "gsb": mean(gsb) if gsb else None,
        "seed_distance": mean(d["after"] / d["before"] for d in distances) if distances else None,
        "images": mean(run["images"] for run in runs),
        "training_s": mean(r["training_s"] for r in results),
        "first_alarm": [run["alarm"] for run in runs],
        "status": sorted({r["status"] for r in results}),
    }


def beside_rows(result: Mapping) -> list[dict]:
    """Rows of what was measured beside a run: the untrained generator at other settings, and best of 2."""
    rows = []
    for name, figures in result.get("beside", {}).items():
        row: dict = {"row": name, "seeds": []}
        for figure, _ in CHANGES:
            if figure in figures:
                row[figure] = {key: figures[figure][key] for key in ("difference", "low", "high")}
        rows.append(row)
    return rows


def t2i_markdown(rows: Sequence[dict]) -> str:
    """The table with its explanation."""
    head = [
        "",
        *(title for _, title in CHANGES),
        "GSB by the referee",
        "seed distance",
        "images",
        "training, s",
        "first alarm",
    ]
    body = []
    for row in rows:
        cells = [row["row"], *(_change(row.get(figure)) for figure, _ in CHANGES)]
        if row["seeds"]:
            alarms = " ".join("-" if step is None else str(step) for step in row["first_alarm"])
            cells += [
                "" if row["gsb"] is None else f"{100 * row['gsb']:+.1f} %",
                "" if row["seed_distance"] is None else f"{row['seed_distance']:.2f}",
                f"{row['images']:.0f}",
                f"{row['training_s']:.0f}",
                alarms,
            ]
        body.append(cells + [""] * (len(head) - len(cells)))
    return f"{markdown_table(head, body)}\n\n{EXPLAINED}\n"


def _change(figure: dict | None) -> str:
    if figure is None:
        return ""
    text = f"{figure['difference']:+.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
    each = figure.get("each", [])
    return text + (f" {' '.join(f'{value:+.2f}' for value in each)}" if len(each) > 1 else "")
