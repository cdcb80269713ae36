"""Images that a text-to-image run's generator makes, as data of `jobs/audit.py` and of jobs that distil."""

from __future__ import annotations

from zr_ray.config.sections import field
from zr_ray.config.workers import WorkerSection


class ImagesSection(WorkerSection):
    """Which generator makes them, of what, and where it runs. Prompts are training prompts of that run, so that its
    held-out ones stay unseen by every judge."""

    of: str | None = field(
        None,
        "a text-to-image run, going on or finished: `latest`, a run id under run.root, or a run folder. Its newest"
        " checkpoint makes images; null: none are made, the job takes data.path alone",
    )
    prompts: int = field(320, "prompts that images are made of, each time; fewer where the run has fewer", ge=2)
    per_prompt: int = field(4, "images of a prompt", ge=2, why="to compare images of one prompt")
    held_out_frac: float = field(
        0.2,
        "share of the run's training prompts, always the same ones, whose images are the split `test`: a student that"
        " learns from the rest is stopped by them",
        gt=0,
        lt=1,
    )
    seed: int = field(0, "draws prompts and noise, with the checkpoint's step", ge=0)
    threads: int = field(1, "OMP threads per actor", ge=1)
    deadline_s: float = field(1800.0, "seconds until all images of one checkpoint must be there", gt=0)
