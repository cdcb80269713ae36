"""Tables and charts of an evaluation say what result.json says."""

import re

from zr_ray.report.tables import (
    evaluation_sections,
    interval_text,
    line_chart,
    markdown_table,
    markdown_tables,
    scaling_curve,
)


def agreement(hpa):
    found = {
        "hpa": hpa,
        "margin_hpa": hpa,
        "plcc": 0.5,
        "srcc": 0.5,
        "krcc": 0.4,
        "plcc_logistic": 0.52,
        "tie_accuracy": 0.6,
    }
    found |= {"nll": 1.9, "crps": 0.45, "win_ece": 0.05, "win_ece_votes": 0.03, "entropy": 1.8, "outside_mass": 0.01}
    return found | {
        f"{key}_ci": [value - 0.02, value + 0.02] for key, value in list(found.items()) if key != "plcc_logistic"
    }


def result():
    names = {
        "direct": 1,
        "reasoning, greedy": 1,
        "reasoning, 1 sample": 1,
        "reasoning, mean of 2": 2,
        "reasoning, mean of 4": 4,
    }
    dimensions = {"realism": agreement(0.8)}
    rows = [
        {
            "method": name,
            "samples": n,
            "pooled": agreement(0.7 + 0.02 * n),
            "dimensions": dimensions,
            "tokens_per_score": n,
        }
        for name, n in names.items()
    ]
    follow = {"follow": 0.62, "follow_ci": [0.5, 0.7], "order_follows": 0.7, "order_follows_ci": None, "pairs": 31}
    follow |= {"trace_effect": 0.4, "image_effect": 0.2}
    swap = {"pooled": follow, "dimensions": {"realism": follow}}
    ceiling = {"pooled": {"hpa": 0.93, "hpa_ci": [0.92, 0.94], "plcc": 0.96}, "dimensions": {"realism": {"hpa": 0.95}}}
    return {"run_id": "x", "judge": "/j", "rows": rows, "noise_ceiling": ceiling, "swap": swap}


def test_markdown_holds_the_numbers_and_every_line_has_the_same_columns():
    text = markdown_tables(result())
    assert "| reasoning, mean of 4 | 78.0 [76.0, 80.0] |" in text and "| noise ceiling | 93.0 [92.0, 94.0] |" in text
    assert "0.620 [0.500, 0.700]" in text and "## Realism" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_missing_value_is_a_dash_and_a_bar_cannot_break_a_table():
    assert interval_text(None, None) == "-" and interval_text(0.5, None, 100) == "50.0"
    assert interval_text(0.01, [-0.01, 0.03], 100, sign=True) == "+1.0 [-1.0, +3.0]"
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines()[2] == "| x\\|y | 1 |"


def test_sections_of_the_page():
    page = evaluation_sections(result())
    assert page.count("<svg") == 2 and "More samples" in page and "Swapped reasoning traces" in page
    plain = {"rows": [{"method": "gdso", "pooled": {"hpa": 0.8}, "dimensions": {}}]}
    assert evaluation_sections(plain) == "" and scaling_curve(plain) == []


def test_line_chart_names_its_curves():
    svg = line_chart(
        {"a&b": [(0, 1.0, 0.9, 1.1), (10, 2.0, 1.9, 2.1)], "c": [(0, 1.0, None, None)]}, "step", "HPA", "curves"
    )
    assert svg.startswith("<svg") and "a&amp;b" in svg and "var(--s1)" in svg
