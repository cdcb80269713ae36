"""Is a reward being fooled? Its rise against that of figures which training cannot move (Goodhart's law, made a test).

Left out on purpose: who measures; the rows come from paired looks at the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ERRORS = 2.0
"""Standard errors beyond which the reward counts as risen."""


@dataclass(frozen=True)
class Verdict:
    """What one look says."""

    alarm: bool
    reasons: tuple[str, ...]
    """One line each; empty without an alarm."""


def watch(
    rows: Mapping[str, Mapping[str, float]], reward: str, independent: tuple[str, ...], statistics: tuple[str, ...],
    errors: float = ERRORS, far: float = 1.0,
) -> Verdict:  # fmt: skip
    """Alarm if the reward rose by more than `errors` standard errors while no independent score did rise, or if an
    image statistic went further from the untrained images than `far` of their standard deviations.

    Args: rows: figure -> {"before", "difference", "error", "spread"}. reward, independent, statistics: names of rows;
        absent ones are left out, and without any independent score only the statistics are watched."""
    reasons = []
    gain, known = rows.get(reward), [name for name in independent if name in rows]
    if gain is not None and known and gain["difference"] > errors * gain["error"]:
        if all(rows[name]["difference"] <= 0 for name in known):
            said = ", ".join(f"{name} {rows[name]['difference']:+.2f}" for name in known)
            reasons.append(f"{reward} rose by {gain['difference']:+.2f} and nothing independent did: {said}")
    for name in statistics:
        row = rows.get(name)
        if row is not None and row["spread"] > 0 and abs(row["difference"]) > far * row["spread"]:
            reasons.append(
                f"{name} went from {row['before']:.4g} by {row['difference']:+.2g},"
                f" {abs(row['difference']) / row['spread']:.1f} standard deviations of the untrained images"
            )
    return Verdict(bool(reasons), tuple(reasons))
