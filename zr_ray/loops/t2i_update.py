"""The end of a step, the same for all algorithms: sums of all ranks, the optimizer's step, means."""

from __future__ import annotations

import resource

from zr_ray.workers.generator import GeneratorWorker


def step_metrics(worker: GeneratorWorker, sums: dict[str, float], images: int, lr: float) -> dict[str, float]:
    """Reduce the sums of all ranks, take the optimizer step, return means.   images: of all ranks, what losses are
    divided by."""
    names = sorted(sums)
    totals = dict(zip(names, worker.reduce_sum([sums[name] for name in names]), strict=True))
    size = totals.pop("anchor/size") / max(totals.pop("anchor/sized"), 1.0)
    applied = worker.apply(lr, size)
    scored = totals.pop("reward/scored")
    counts = {name: totals.pop(name) for name in list(totals) if name.startswith("reward/failed")}
    means = {}
    for name, value in totals.items():
        means[name] = value / (max(scored, 1.0) if name.startswith("reward/") else images)
    memory_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return means | applied | counts | {"reward/images": scored, "actor/memory_gib": memory_gib}
