"""Examples for the report: some judged items with image, reasoning and distribution, spread over dimensions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch

from zr_ray.judging.evaluate import Judged
from zr_ray.records import AnnotatedImage
from zr_ray.run.folder import RunFolder


def write_examples(
    run: RunFolder,
    method: str,
    judged: Judged,
    before: torch.Tensor | None,
    human: torch.Tensor,
    items: Sequence[AnnotatedImage],
    known: Sequence[int],
    count: int,
) -> None:
    """Write examples/examples.json and its images (schema in report.py).

    Args: before: [I, D] mu of the untrained judge, or None. known: items whose reasoning this rank holds; `count` of
        them are taken, evenly spaced, dimensions in turn."""
    stride = max(1, len(known) // count)
    rubric, examples = judged.rubric, []
    for n, i in enumerate(list(known)[::stride][:count]):
        d = n % len(rubric.dimensions)
        if not bool(judged.mu[i, d].isfinite()):
            continue
        name = f"{n:02d}{items[i].image.suffix}"
        shutil.copyfile(items[i].image, run.examples / name)
        examples.append(
            {
                "image": name,
                "prompt": items[i].prompt,
                "dimension": rubric.dimensions[d],
                "reasoning": judged.reasoning[i][d],
                "bins": list(rubric.bins),
                "q": [round(float(p), 5) for p in judged.q[i, d]],
                "mu": round(float(judged.mu[i, d]), 3),
                "mu_before": (
                    round(float(before[i, d]), 3) if before is not None and bool(before[i, d].isfinite()) else None
                ),
                "human": round(float(human[i, d]), 3) if bool(human[i, d].isfinite()) else None,
                "method": method,
            }
        )
    run.write_json("examples/examples.json", examples)
