"""A text-to-image run after some steps, without the time that training takes: the configuration that the job would
write, and a checkpoint that its own worker wrote, of weights that have moved."""

from __future__ import annotations

from pathlib import Path

from zr_ray.config.t2i import T2iConfig
from zr_ray.models.generators.load import generator_folder
from zr_ray.run.checkpoints import write_checkpoint
from zr_ray.run.folder import RunFolder
from zr_ray.workers.generator import GeneratorWorker

STATE = {"step": 4, "watch": {"stopped": ""}}


def painted_run(root: Path, name: str, steps: int = 2) -> tuple[RunFolder, GeneratorWorker]:
    """(folder of a run with a checkpoint after step 4, the worker that wrote it). steps: of the sampler."""
    config = T2iConfig.model_validate(
        {
            "run": {"root": root, "name": name},
            "generator": {"compiled": False, "steps": steps, "micro_batch": 4},
            "t2i": {"steps": 8, "prompts_per_step": 2, "group_size": 2},
            "actor": {"warmup_steps": 1},
        }
    )
    run = RunFolder.start(config, "t2i")
    worker = GeneratorWorker(generator_folder("builtin"), config.generator, config.actor)
    for value in worker.weights.sets["average"]:
        value.mul_(1.02)
    paint_on(run, worker, 4)
    return run, worker


def paint_on(run: RunFolder, worker: GeneratorWorker, step: int) -> None:
    """A further checkpoint."""
    write_checkpoint(run.checkpoints, step, lambda folder: worker.save(folder, STATE | {"step": step}), keep=2)
