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
    if "order" in report:
        parts.append(_order_table(report["order"], report["reference"]))
    if report["worst"]:
        lines = [
            [w["id"], w["dimension"], f"{w['student']:.2f}", f"{w['teacher']:.2f}", w["prompt"], w.get("copy", "")]
            for w in report["worst"]
        ]
        parts.append(
            markdown_table(["largest differences", "dimension", "student", "teacher", "prompt", "image"], lines)
        )
    parts.append("Verdict: " + ("; ".join(report["problems"]) if report["problems"] else "within the limits"))
    for line in report.get("teacher_problems", ()):
        parts.append(f"Distilling again would not help here: {line}")
    if report.get("redistill"):
        parts.append(f"Distil again:\n\n    {report['redistill']}")
    return "\n\n".join(parts) + "\n"


def _order_table(order: dict, reference: str | None) -> str:
    """Same-prompt pairs ordered alike, of the prompts drawn at random, and who is kinder."""
    judged = ["student/teacher", *(["student/reference", "teacher/reference"] if reference else [])]
    lines = []
    for name, entry in [("pooled", order["pooled"]), *order["dimensions"].items()]:
        cells = []
        for pair in judged:
            found = entry[pair]
            if found["accuracy"] is None:
                cells += ["no pairs", "", ""]
                continue
            bounds = f" [{100 * found['ci'][0]:.1f}, {100 * found['ci'][1]:.1f}]" if found["ci"] else ""
            bias = "" if found["bias"] is None else f"{found['bias']:+.2f}"
            cells += [f"{100 * found['accuracy']:.1f}{bounds}", bias, str(found["pairs"])]
        lines.append([name, *cells])
    head = ["same-prompt pairs ordered alike, %"]
    for pair in judged:
        head += [pair.replace("/", " as "), "mu difference", "pairs"]
    told = f"Reference: {reference}. Chance is 50.\n\n" if reference else "No reference scores in this data.\n\n"
    return told + markdown_table(head, lines)


def _cells(entry: dict) -> list[str]:
    def cell(key: str, scale: float = 1, digits: int = 3) -> str:
        if entry[key] is None:
            return undefined_text(entry, key)
        bounds = entry.get(f"{key}_ci")
        return f"{entry[key] * scale:.{digits}f}" + (
            f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else ""
        )

    return [str(entry["items"]), cell("mu_gap"), cell("mu_bias"), cell("kl"), cell("plcc"), cell("flips", 100, 1)]
