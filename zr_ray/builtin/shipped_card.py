"""The model card of a judge that ships with the package: how it was made, how it orders a generator's images, limits.

Figures come from files that jobs wrote: fitness JSON of `jobs/evaluate_reward.py`, `result.json` of a training run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

KINDS = {
    "base": "Built-in base judge of generated images: it sees rendered and generated images and reasons. Its language"
    " model has never been shown the rubric's scores.",
    "teacher": "Built-in teacher: the base judge after GDSO (`jobs/gdso.py`). It reasons, then scores.",
    "distilled": "Built-in student: distilled (RISD, `jobs/risd.py`) from the built-in teacher. One token a score.",
    "direct": "Built-in judge fitted directly to the verifier's scores of generated images"
    " (`jobs/builtin/fit_judge.py`). One token a score. It is not distilled from a teacher: it needed a verifier, which"
    " no real generator has.",
    "referee": "Built-in referee: a judge of another architecture, base and seed than the shipped student, on half of"
    " the prompts. It is never asked for labels or rewards, so a generator's training cannot move it; what it knows"
    " comes from the same verifier as the student's knowledge, so the two may share mistakes.",
}
"""Kind of a shipped judge -> its first paragraph."""

TITLES = {
    "base": "Built-in base judge of generated images",
    "teacher": "Built-in teacher",
    "distilled": "Built-in student",
    "direct": "Built-in student, fitted to the verifier",
    "referee": "Built-in referee",
}
_CARD = """# {name}

{about} {millions:.2f} M parameters, 64x64 images of the SIMULATED rubric world; it knows nothing of real images and no
human data was used.

**Data** {data}

**Recipe** {recipe}

**Time** {hours}

## How it orders images of one prompt

Prompts of two objects that nothing was trained on; the reference is the world's verifier. Pairs: same-prompt pairs
whose reference differs by more than .05, ordered alike (a tie is wrong, chance is .5); spread: of the expected score
inside a prompt against the reference's; 95 % bootstrap intervals over prompts.

{fitness}

{agreement}

## Limits

{limits}

```yaml
{config}```
"""


def fitness_tables(paths: Sequence[Path]) -> str:
    """Markdown of fitness JSON files (`jobs/evaluate_reward.py`)."""
    parts = []
    for path in paths:
        found = json.loads(Path(path).read_text())
        size = f"{found['prompts']} prompts x {found['images']} images"
        most = max(map(int, found["best_of"]))
        gain, fooled = found["gain_share"], ", ".join(found["fooled_by"]) or "none of the probe pictures"
        lines = [
            f"Guidance {found['guidance']:g}, {found['steps']} steps, {size}{_asked(found.get('traces', 0))}.",
            f"Best of {most} by this judge gains {gain:.2f} of what the reference's own choice gains.",
            f"Liked more than the reference likes them: {fooled}.\n",
            "| dimension | pairs right | 95 % interval | gaps above .25 | one recognized | both | spread | verdict |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, d in found["dimensions"].items():
            low, high = d["interval"]
            ratio = d["spread"] / d["reference_spread"]
            cells = [d["accuracy"], f"{low:.3f}, {high:.3f}", d["coarse_accuracy"], d["recognized_against_not"]]
            cells += [d["both_recognized"], ratio, d["verdict"]]
            shown = [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in cells]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not measured: `jobs/evaluate_reward.py` was not run."


def _asked(traces: int) -> str:
    return f"; after reasoning, mean of {traces} sampled traces" if traces else ""


def agreement_table(path: Path | None) -> str:
    """Markdown of the rows of a run (`result.json` or `rows.json`): HPA on its test split; "" without one."""
    if path is None:
        return ""
    found = json.loads(Path(path).read_text())
    rows = (
        found if isinstance(found, list) else found["rows"]
    )  # rows.json of a run that was stopped, or its result.json
    names = list(rows[0]["dimensions"])
    lines = ["On the run's test split (simulated annotators), HPA in %:\n", f"| | pooled | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in rows:
        cells = [row["pooled"]["hpa"], *(row["dimensions"][name]["hpa"] for name in names)]
        lines.append(f"| {row['method']} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def shipped_card(
    kind: str,
    parameters: int,
    *,
    data: str,
    recipe: str,
    hours: str,
    limits: str,
    config: str,
    fitness: Sequence[Path] = (),
    result: Path | None = None,
) -> str:
    """Markdown. kind: of KINDS. config: YAML of the last job. fitness, result: files with the figures."""
    return _CARD.format(
        name=TITLES[kind],
        about=KINDS[kind],
        millions=parameters / 1e6,
        data=data,
        recipe=recipe,
        hours=hours,
        fitness=fitness_tables(fitness),
        agreement=agreement_table(result),
        limits=limits,
        config=config,
    )
