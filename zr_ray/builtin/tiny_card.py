"""The model card of the built-in judge, from the figures its job measured."""

from __future__ import annotations

from zr_ray.rubric import DIMENSIONS

_CARD = """# Built-in base judge

A `Qwen3VLForConditionalGeneration` of {millions:.2f} M parameters for 64x64 images of the simulated rubric world, to try zr_ray's loops
with real engines in minutes. It sees and reasons but has never been shown the rubric's scores: a weak judge on purpose. It knows
nothing of real images.

Data: the built-in rubric world (`zr_ray.world`), simulated; no human data. Fresh scenes at every step.

Recipe (`jobs/builtin/pretrain_judge.py`): (1) dense perception supervision of the vision tower through heads that are thrown away;
(2) next-token training on oracle reasoning chains and score labels, tower included. A score label is an *overall impression*: the mean
of the four true scores plus noise, rounded to a half-point, the same for all four dimensions. So scores carry a halo, as those of
an untrained rater do; no per-dimension rubric score was used.

Format: `<image> <dimension> <prompt>` -> `<chain> score <label>`, label "1".."9" for 1.0, 1.5, ..., 5.0 (`scoring_format.json`).

## Evaluation

{images} held-out images, four per prompt, five simulated annotators without the highest and lowest score; greedy, expectation over the nine labels.

| dimension | HPA direct | HPA with reasoning | exact chains | well-formed | score entropy, nats | tokens |
|---|---|---|---|---|---|---|
{rows}

Standard error of a dimension's HPA about {error:.1f} points.

Limits: 64x64 scenes and the closed vocabulary of the world only; scores are not calibrated to any rubric.

```yaml
{config}```

Made by `jobs/builtin/pretrain_judge.py` with this configuration in {minutes:.0f} minutes on {threads} CPU thread(s).
"""


def model_card(
    config: str, figures: dict[str, float], groups: int, parameters: int, minutes: float, threads: int
) -> str:
    """Markdown from `evaluate_tiny_judge`'s figures over `groups` prompts of four images. config: resolved YAML.

    minutes: training time of the last process (all of it unless resumed)."""
    rows = []
    for d in DIMENSIONS:
        cells = [
            figures[f"{key}_{d}"]
            for key in ("direct/hpa", "reasoning/hpa", "reasoning/exact", "reasoning/formed", "reasoning/entropy")
        ]
        rows.append(
            f"| {d} | " + " | ".join(f"{x:.3f}" for x in cells) + f" | {figures[f'reasoning/tokens_{d}']:.1f} |"
        )
    rows.append(f"| pooled | {figures['direct/hpa']:.3f} | {figures['reasoning/hpa']:.3f} | | | | |")
    error = 100 * (0.24 / (groups * 6)) ** 0.5 * 1.3  # six pairs a prompt; 1.3 for their dependence
    return _CARD.format(
        millions=parameters / 1e6,
        images=groups * 4,
        rows="\n".join(rows),
        error=error,
        config=config,
        minutes=minutes,
        threads=threads,
    )
