"""What a text-to-image report and its job log say of the reward's versions: the looks at its drift, and what came of
them.

Entries are those of `loops/reward_versions.py`, which result.json has as "reward_refresh": {"versions": [...], "looks":
[...]}. Left out on purpose: the distillations themselves, each has a report of its own.
"""

from __future__ import annotations

from html import escape

from zr_ray.report.figures import Panel
from zr_ray.run.observe import duration


def look_text(look: dict) -> str:
    """What one look saw, in one line."""
    if look["accuracy"] is None:
        return f"v{look['version']}: no pairs to see by"
    interval = ""
    if look["ci"] is not None:
        low, high = look["ci"]
        interval = f" [{low:.1%}, {high:.1%}]"
    return (
        f"v{look['version']} orders {look['accuracy']:.1%}{interval} of {look['pairs']} same-prompt pairs as its"
        " teacher does, on prompts that it did not learn from"
    )


def outcome_text(look: dict) -> str:
    """What came of a look, in one line."""
    refresh = look["refresh"]
    if refresh is None:
        return "no drift"
    if refresh["taken"] is None:
        return f"distilled, not taken: {refresh['why_not']}"
    return (
        f"distilled, v{refresh['taken']} ({refresh['sha256'][:12]}) from there on: unseen prompts of the pool"
        f" {refresh['before']:.1%} to {refresh['after']:.1%}, of these images {_share(look['accuracy'])} to"
        f" {_share(refresh['accuracy'])}"
    )


def refresh_lines(result: dict) -> list[str]:
    """Lines of the job log; none for a run without refresh."""
    return [
        f"reward after step {look['step']}: {look_text(look)}; {outcome_text(look)}"
        for look in result.get("reward_refresh", {}).get("looks", [])
    ]


def refresh_panels(result: dict) -> tuple[Panel, ...]:
    """Curves beside those of every run; none for a run without refresh."""
    panel = Panel("Version of the reward", "0: the one that the run began with", ("reward/version",))
    return (panel,) if "reward_refresh" in result else ()


def refresh_section(result: dict) -> str:
    """HTML; empty for a run without refresh."""
    told = result.get("reward_refresh")
    if told is None:
        return ""
    names = "; ".join(
        f"v{v['number']} ({v['sha256'][:12]}) rewarded from step {v['since_step'] + 1} on" for v in told["versions"]
    )
    head = (
        "after step",
        "version",
        "ordered as its teacher",
        "pairs",
        "why again",
        "unseen prompts of the pool, before",
        "after",
        "these images, after",
        "from there on",
        "training waited",
    )
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(look))}</tr>" for look in told["looks"])
    return (
        '<h2>Versions of the reward</h2><p class="soft">At each look the student that rewards and its teacher ordered'
        " images of one prompt that the generator had just made, of prompts that no student learns from; 95 %"
        " intervals over prompts. Where they had drifted apart the student was distilled again, and taken if it was"
        " better on unseen prompts. Rewards before and after a change are two scales: the curves of the reward have a"
        f" step there. {escape(names)}.</p>"
        f'<div class="scroll"><table class="wide"><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr>{rows}'
        "</table></div>"
    )


def _cells(look: dict) -> list[str]:
    refresh = look["refresh"] or {}
    interval = f" [{look['ci'][0]:.1%}, {look['ci'][1]:.1%}]" if look["ci"] is not None else ""
    taken = "-" if not refresh else f"v{refresh['taken']}" if refresh["taken"] else f"v{look['version']}, not taken"
    return [
        str(look["step"]),
        f"v{look['version']}",
        _share(look["accuracy"]) + interval,
        str(look["pairs"]),
        "; ".join(look["reasons"]) or "no drift",
        _share(refresh.get("before")),
        _share(refresh.get("after")),
        _share(refresh.get("accuracy")),
        taken,
        duration(look["seconds"]),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
