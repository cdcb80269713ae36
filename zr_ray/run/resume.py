"""Which settings a resumed run may change. All others must be those it began with: its result depends on them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from zr_ray.config.loader import differing_keys, leaves, load_config
from zr_ray.errors import CheckpointError, ConfigError

TAKEN = (
    "run.*",
    "chain.*",  # a chain compares its stages' own configurations
    "gdso.overrides",
    "risd.overrides",
    "t2i.overrides",
    "evaluate_reward.arguments",
    "*deadline_s",
    "*.restarts",
    "learner.lr",
    "learner.min_lr_frac",
    "learner.warmup_steps",
    "learner.grad_clip",
    "learner.max_tokens_per_microbatch",
    "learner.gradient_checkpointing",
    "gdso.unscored_steps",
    "learner.cpus",
    "learner.resource",
    "learner.threads",
    "actor.lr",
    "actor.cpus",
    "actor.resource",
    "actor.threads",
    "reward.cpus",
    "reward.resource",
    "reward.threads",
    "*.stop_after_s",
    "t2i.steps",  # the rate is constant: more steps are the same run, longer
    "table.at_once",
    "table.seeds",
    "table.rows.*.seeds",
    "table.speed_*",  # measured at the end
    "table.claims",
    "held_out.beside",
    "held_out.best_of",
    "held_out.before_of",
    "rollout.*",
    "weights.*",
    "checkpoint.*",
)
"""Keys that a resumed run may change: where it runs, and the remedies that our own errors suggest. All but run.seed,
which decides the order of the data."""


def may_change(key: str) -> bool:
    """Whether a resumed run may have another value of this key."""
    return key != "run.seed" and any(fnmatch(key, pattern) for pattern in TAKEN)


def resumable(written: Path, config) -> dict[str, list]:
    """Keys whose values differ from those of the run, [was, now] each; all of them may.

    Args: written: the run's resolved configuration. config: the present one.
    Raises: CheckpointError if it is not there, does not load, or differs in a key that may not."""
    written = Path(written).resolve()
    run = written.parent
    if not written.is_file():
        raise CheckpointError(
            f"{run} is no run folder: it has no {written.name}; point run.resume at a folder under run.root"
        )
    try:
        stored = load_config(type(config), written, [])
    except ConfigError as error:
        raise CheckpointError(
            f"{run} comes from another version of zr_ray, its configuration does not load: {error}"
        ) from None
    differing = differing_keys(stored, config)
    was, now = ({key: values.get(key, "not there") for key in differing} for values in map(leaves, (stored, config)))
    refused = [key for key in differing if not may_change(key)]
    if refused:
        changes = ", ".join(f"{key} was {was[key]}, now {now[key]}" for key in refused)
        raise CheckpointError(
            f"cannot resume {run.name} under another configuration: {changes}; put these back, or start a new run"
        )
    return {key: [was[key], now[key]] for key in differing}
