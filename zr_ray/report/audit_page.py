"""The report of an audit as Markdown."""

from __future__ import annotations

from zr_ray.report.tables import markdown_table
from zr_ray.run.result import undefined_text


def markdown(report: dict) -> str:
    """The report as Markdown."""
    parts = [
        f"# Audit of {report['student']['folder']}",
        f"Teacher {report['teacher']['folder']}; {report['pool']} items scored by the student.",
    ]
    for name, entry in report["samples"].items():
        lines = [
            [dimension, *_cells(values)]
            for dimension, values in [("pooled", entry["pooled"]), *entry["dimensions"].items()]
        ]
        head = [
            {"random": "random items", "highest": "the student's favorites"}[name],
            "scores",
            "mu gap",
            "bias",
            "KL, nats",
            "PLCC",
            "pairs turned over %",
        ]
        parts.append(markdown_table(head, lines))
    if report["worst"]:
        lines = [
            [w["id"], w["dimension"], f"{w['student']:.2f}", f"{w['teacher']:.2f}", w["prompt"], w.get("copy", "")]
            for w in report["worst"]
        ]
        parts.append(
            markdown_table(["largest differences", "dimension", "student", "teacher", "prompt", "image"], lines)
        )
    parts.append("Verdict: " + ("; ".join(report["problems"]) if report["problems"] else "within the limits"))
    return "\n\n".join(parts) + "\n"


def _cells(entry: dict) -> list[str]:
    def cell(key: str, scale: float = 1, digits: int = 3) -> str:
        if entry[key] is None:
            return undefined_text(entry, key)
        bounds = entry.get(f"{key}_ci")
        return f"{entry[key] * scale:.{digits}f}" + (
            f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else ""
        )

    return [str(entry["items"]), cell("mu_gap"), cell("mu_bias"), cell("kl"), cell("plcc"), cell("flips", 100, 1)]
