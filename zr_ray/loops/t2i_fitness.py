"""Is the reward fit for this generator? Said before the first step, from the images of the look before training.

Left out on purpose: calibration, best-of-n and pictures that fool rewards; `jobs/evaluate_reward.py` measures those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from zr_ray.config.t2i import T2iConfig
from zr_ray.config.t2i_reward import OF_SOURCE
from zr_ray.errors import JudgeError
from zr_ray.judging.fitness import quick_verdicts
from zr_ray.judging.held_out_images import Look


def say_fitness(before: Look, config: T2iConfig, say: Callable[[str], None]) -> dict[str, str]:
    """A line per dimension of the reward that the world's verifier also scores. Returns: dimension -> verdict.

    Raises: JudgeError if a dimension that carries weight is blind and reward.blind is `refuse`."""
    weighted = [name for name, weight in config.reward.score_weights.items() if weight]
    figures = {name: torch.from_numpy(values) for name, values in before.figures.items()}
    # the verifier knows a judge's dimension whatever its source is called
    compared = {name: f"verifier/{name.rpartition(OF_SOURCE)[2]}" for name in weighted if f"reward/{name}" in figures}
    reference = {name: figures[figure] for name, figure in compared.items() if figure in figures}
    mu = {name: figures[f"reward/{name}"] for name in reference}
    found = quick_verdicts(reference, mu, seed=config.run.seed)
    for name in weighted:
        if name not in found:
            say(
                f"reward {name}: nothing to compare with; jobs/evaluate_reward.py --data takes images with human scores"
            )
            continue
        kind, accuracy, (low, high), ratio = found[name]
        told = "too few pairs to tell" if kind == "unknown" else f"95 % {low:.2f} to {high:.2f}"
        say(
            f"reward {name}: {kind}; orders {accuracy:.0%} of same-prompt pairs as the verifier does ({told}), varies"
            f" {ratio:.2f} times as much inside a prompt"
        )
    blind = [name for name in found if found[name][0] == "blind"]
    if blind and config.reward.blind == "refuse":
        raise JudgeError(
            f"the reward must see differences between images of one prompt, it is blind in {', '.join(blind)};"
            " use a judge that was trained on this generator's images (jobs/evaluate_reward.py measures), weigh the"
            " dimension 0, or set reward.blind=accept"
        )
    return {name: found[name][0] for name in found}
