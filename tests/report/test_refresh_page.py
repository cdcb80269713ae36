"""What report and job log say of each look at the reward: no drift, distilled and taken, distilled and not taken."""

from zr_ray.report.refresh_page import refresh_lines, refresh_panels, refresh_section

LOOK = {
    "version": 0,
    "accuracy": 0.712,
    "ci": [0.65, 0.77],
    "pairs": 320,
    "reasons": [],
    "refresh": None,
    "seconds": 70,
}
TAKEN = {"taken": 1, "sha256": "ab" * 32, "before": 0.601, "after": 0.688, "accuracy": 0.702, "why_not": ""}
NOT = {"taken": None, "before": 0.601, "after": 0.605, "accuracy": None, "why_not": "it orders 60.5 % <b>"}
RESULT = {
    "reward_refresh": {
        "versions": [
            {"number": 0, "sha256": "cd" * 32, "since_step": 0},
            {"number": 1, "sha256": "ab" * 32, "since_step": 40},
        ],
        "looks": [
            LOOK | {"step": 20},
            LOOK | {"step": 40, "accuracy": 0.58, "reasons": ["58 % < 65 %"], "refresh": TAKEN},
            LOOK | {"step": 60, "version": 1, "accuracy": None, "ci": None, "pairs": 0},
            LOOK | {"step": 80, "version": 1, "reasons": ["fallen"], "refresh": NOT},
        ],
    }
}


def test_a_line_for_every_look():
    none, taken, blank, kept = refresh_lines(RESULT)
    assert none.startswith("reward after step 20: v0 orders 71.2% [65.0%, 77.0%] of 320 same-prompt pairs")
    assert none.endswith("no drift")
    assert "v1 (abababababab) from there on: unseen prompts of the pool 60.1% to 68.8%" in taken
    assert "of these images 58.0% to 70.2%" in taken and "no pairs to see by" in blank
    assert "not taken: it orders 60.5 %" in kept


def test_the_table_escapes_what_it_shows():
    page = refresh_section(RESULT)
    assert page.count("<tr>") == 5 and "v1 (abababababab) rewarded from step 41 on" in page
    assert "58 % &lt; 65 %" in page and "<b>" not in page and "v1, not taken" in page and "1 min 10 s" in page


def test_a_run_without_refresh_has_none_of_it():
    assert refresh_section({}) == "" and refresh_lines({}) == [] and refresh_panels({}) == ()
