"""What a text-to-image run found: the last look against the first, what competes with it, and the generator on disk."""

from __future__ import annotations

from pathlib import Path

from zr_ray.judging.held_out_images import Look, compare, gsb_rows, with_distances
from zr_ray.loops.reward_versions import RewardVersions
from zr_ray.loops.t2i_looks import Looks
from zr_ray.loops.t2i_watch import Watch
from zr_ray.workers.reward_source import RewardSource


def finished(task, watch: Watch, looks: Looks, rewards: RewardSource, steps: int, folder: Path) -> dict:
    """Look at all held-out prompts, save the generator into `folder`/generator. Returns the keys of result.json that
    the report reads; all ranks call it."""
    weights, state = watch.weights, watch.state
    after = with_distances(looks.look(len(task.held_out), weights), looks.before)
    beside = looks.beside(after) if task.config.held_out.beside else {}
    watch.worker.save_generator(folder / "generator", weights)
    if watch.rank == 0:
        after.save(looks.folder / "after.npz")
    versions = RewardVersions(task.run_path)
    told = {"versions": [vars(version) for version in versions.all], "looks": versions.looks}
    return (
        _told(task, looks.before, after, beside)
        | ({"reward_refresh": told} if versions.all else {})
        | {
            "status": "STOPPED" if state.stopped else "SUCCEEDED",
            "stopped": state.stopped,
            "training_s": state.training_s,
            "steps": steps,
            "weights": weights + (f" of step {state.best_step}" if weights == "best" else ""),
            "reward_calls": dict(rewards.counters),
            "reward_versions": sorted(rewards.versions | set(versions.numbers())),
            "reward_weights": task.config.reward.score_weights,
        }
    )


def _told(task, before: Look, after: Look, beside: dict[str, Look]) -> dict:
    c = task.config
    resamples, seed = c.held_out.bootstrap_resamples, c.run.seed
    return {
        "algorithm": c.t2i.algorithm,
        "sampler": {
            "kind": "ODE, the pipeline's own schedule",
            "steps": c.generator.steps,
            "guidance_scale": c.generator.guidance_scale,
        },
        "prompts": len(task.held_out),
        "seeds": c.held_out.seeds,
        "figures": compare(before, after, resamples, seed),
        "gsb": gsb_rows(before, after, resamples, seed),
        "beside": {name: compare(before, look, resamples, seed) for name, look in beside.items()},
        "held_out_prompts": list(task.held_out[: c.held_out.grid]),
    }
