"""The model card of a student that RISD made, from its run folder: data, teacher, recipe, evaluation with intervals,
limits, how to load it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from zr_ray.report.tables import read_warnings
from zr_ray.rubric import Rubric, ScoringFormat
from zr_ray.run.folder import CONFIG_FILE, RunFolder
from zr_ray.run.result import undefined_text

SNIPPET_FILE = "read_scores.py"
"""The card's loading example, also as a file in the student folder."""
_CODE = Path(__file__).parents[1] / "models" / SNIPPET_FILE

_CARD = """# Student judge `{run_id}`

A distilled judge of images: given a prompt, an image and one of its dimensions ({dimensions}) it gives a probability distribution over
rubric scores ({scale}), without reasoning: one output token. Trained with `jobs/risd.py` of zr_ray (Z-Reward, arXiv 2606.09076).

- **Teacher** `{teacher}`, sha256 of its folder `{teacher_hash}`; {traces}.
- **Data** {data}; {items} training images. {labels}{warnings}
- **Recipe** steps: {steps}, each of {per_step}, AdamW, peak learning rate {lr:g}, seed {seed}; the full configuration is at the end.

## Evaluation

{rows}

95 % bootstrap intervals over prompts in brackets. HPA: untied same-prompt pairs ranked as the annotators rank them.

Against its teacher on the same images (no human scores used):

{gap}

mu gap: mean |mu - mu of the teacher|, rubric points. bias: its signed mean, above 0 the student is kinder. KL(teacher || student) in
nats. turned over: same-prompt pairs that the student orders differently.

## Use

`{snippet}` in this folder reads a distribution with plain transformers and with plain vLLM, nothing else installed:

```python
{code}```

With zr_ray, `zr_ray.models.student.Student(folder)(images, prompts)` gives all dimensions in one forward pass, differentiable with
respect to the pixels.

## Limits

{limits}

```yaml
{config}```
"""


def write_student_card(run: RunFolder, data: Path) -> Path:
    """Write README.md and the loading example into the run's judge folder; returns the card. `data`: folder the run
    learned from."""
    result, config = run.read_result(), yaml.safe_load((run.path / CONFIG_FILE).read_text())
    teacher = json.loads((run.path / "teacher.json").read_text())
    section, label = config["risd"], config["label"]
    simulated = (data / "world.json").is_file()
    scoring = ScoringFormat.load(run.judge)
    rubric = scoring.rubric
    scoring.save(run.judge)  # a judge that lives by the default format gets it written down
    code = _CODE.read_text()
    (run.judge / SNIPPET_FILE).write_text(code)
    card = _CARD.format(
        run_id=run.run_id,
        teacher=teacher["folder"],
        teacher_hash=teacher["sha256"],
        traces=_traces(label["traces"]),
        data=("the built-in rubric world, SIMULATED images and annotators" if simulated else f"`{data}`"),
        items=result["distillation"]["items"],
        labels=_labels(section),
        warnings="".join(f"\n  - warning: {line}" for line in read_warnings(run)),
        steps=_steps(section, result),
        per_step=f"{section['items_per_step']} images in {len(rubric.dimensions)} dimensions",
        lr=config["learner"]["lr"],
        seed=config["run"]["seed"],
        rows=_rows(result["rows"]),
        gap=_gap(result["teacher_gap"]),
        snippet=SNIPPET_FILE,
        code=code,
        limits=_limits(simulated, rubric),
        dimensions=", ".join(rubric.dimensions),
        scale=rubric.scale_text(),
        config=(run.path / CONFIG_FILE).read_text(),
    )
    path = run.judge / "README.md"
    path.write_text(card)
    return path


def _steps(section: dict, result: dict) -> str:
    if "best_step" not in result:
        return str(section["steps"])
    return (
        f"{result['steps']} of at most {section['steps']}, stopped by prompts not learned from, the weights after"
        f" {result['best_step']}"
    )


def _traces(traces: int) -> str:
    return (
        f"{traces} sampled reasoning trace(s) per question, distributions averaged"
        if traces
        else "one greedy reasoning trace per question"
    )


def _labels(section: dict) -> str:
    if section["label_weight"] > 0:
        return (
            f"Human scores are mixed into the targets with weight {section['label_weight']:g} where an image has one."
        )
    return "Human scores of the training images are not used."


def _limits(simulated: bool, rubric: Rubric) -> str:
    world = (
        "It has seen rendered scenes of a closed vocabulary and SIMULATED annotators only, and knows nothing of real"
        " images. "
        if simulated
        else ""
    )
    return (
        f"{world}It inherits its teacher's errors and adds those above. Optimizing images against it finds what it"
        " overlooks: audit it with its teacher on what the optimized generator makes (`jobs/audit.py`). Scores between"
        f" {rubric.bins[0]:g} and {rubric.bins[-1]:g} follow one rubric and are not comparable with others."
    )


def _rows(rows: list[dict]) -> str:
    dimensions = list(rows[0]["dimensions"])
    lines = [["", "HPA %", "margin HPA %", "PLCC", "SRCC", "NLL, nats", "tokens", *(f"HPA % {d}" for d in dimensions)]]
    for row in rows:
        p = row["pooled"]
        cells = [
            _cell(p, "hpa", 100),
            _cell(p, "margin_hpa", 100),
            _cell(p, "plcc"),
            _cell(p, "srcc"),
            _cell(p, "nll"),
            f"{row['tokens_per_score']:.1f}",
        ]
        lines.append([row["method"], *cells, *(_cell(row["dimensions"][d], "hpa", 100) for d in dimensions)])
    return _markdown(lines)


def _gap(gap: dict) -> str:
    lines = [["", "mu gap", "bias", "KL", "PLCC", "turned over %"]]
    for name, entry in [("pooled", gap["pooled"]), *gap["dimensions"].items()]:
        lines.append(
            [
                name,
                _cell(entry, "mu_gap"),
                _cell(entry, "mu_bias"),
                _cell(entry, "kl"),
                _cell(entry, "plcc"),
                _cell(entry, "flips", 100),
            ]
        )
    return _markdown(lines)


def _cell(entry: dict, key: str, scale: float = 1) -> str:
    if entry.get(key) is None:
        return undefined_text(entry, key)
    digits = 1 if scale == 100 else 3
    bounds = entry.get(f"{key}_ci")
    interval = f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else ""
    return f"{entry[key] * scale:.{digits}f}{interval}"


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
