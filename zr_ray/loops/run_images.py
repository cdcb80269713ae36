"""Images of a running or finished text-to-image run as data: found, made once a checkpoint, kept as a growing pool.

    <run.root>/images/<run id>/step_000040-<key>/annotations.jsonl, images/     one checkpoint's, in the annotation
                                                                                format, complete or without the file

`train` and `test` are split by prompt, the same way for every checkpoint. Prompts of the simulated world carry the
verifier's scores; other prompts carry none (`origin: unscored`), which is enough for a teacher to label.
Left out on purpose: images of the run's held-out prompts. They measure the generator, no judge learns from them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zr_ray.config.images import ImagesSection
from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.data.annotations import FILES, write_annotations
from zr_ray.data.checks import UNSCORED
from zr_ray.errors import CheckpointError, ZrRayError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, PAPER
from zr_ray.run.checkpoints import latest_checkpoint
from zr_ray.run.folder import CONFIG_FILE, LATEST
from zr_ray.run.observe import say

POOLS = "images"
"""Folder of all pools, under run.root."""


@dataclass(frozen=True)
class GeneratorRun:
    """A text-to-image run and its newest checkpoint."""

    path: Path
    config: T2iConfig
    step: int
    checkpoint: Path

    @property
    def prompts(self) -> tuple[str, ...]:
        """Training prompts, without repetitions, in an order that depends on the prompts alone."""
        from zr_ray.loops.launch_t2i import task_prompts

        return tuple(sorted(dict.fromkeys(task_prompts(self.config)[0]), key=_digest))


def find_generator_run(of: str, root: Path) -> GeneratorRun:
    """The run that `images.of` means. Raises CheckpointError if there is none, it is no text-to-image run, or it has no
    checkpoint yet."""
    path = _newest(root) if of == LATEST else Path(of) if Path(of).is_absolute() else root / of
    if not (path / CONFIG_FILE).is_file() or (config := _t2i_config(path)) is None:
        raise CheckpointError(
            f"images.of must name a run of jobs/t2i.py, got {path}; name its folder, or its id under {root}"
        )
    found = latest_checkpoint(path / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"images.of needs a checkpoint of {path.name}, it has none yet; wait for one (checkpoint.every_steps is"
            f" {config.checkpoint.every_steps})"
        )
    return GeneratorRun(path.resolve(), config, *found)


def _newest(root: Path) -> Path:
    files = sorted(root.glob(f"*/{CONFIG_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        if not file.parent.is_symlink() and _t2i_config(file.parent) is not None:
            return file.parent
    raise CheckpointError(f"images.of=latest needs a text-to-image run under {root}, got none; run jobs/t2i.py")


def _t2i_config(path: Path) -> T2iConfig | None:
    """A run's own configuration, None where it is another job's."""
    import yaml

    if "t2i" not in (yaml.safe_load((path / CONFIG_FILE).read_text()) or {}):
        return None
    try:
        return load_config(T2iConfig, path / CONFIG_FILE, [])
    except ZrRayError as error:
        raise CheckpointError(f"{path / CONFIG_FILE} cannot be read by this version: {error}") from error


def run_images(made_by: GeneratorRun, c: ImagesSection, root: Path, owner: str, wait_for_nodes_s: float = 0.0) -> Path:
    """The folder with the images of the run's newest checkpoint; made if it is not there. owner: id of the run that
    asks, for the names of actors."""
    folder = pool_folder(made_by, root) / f"step_{made_by.step:06d}-{_key(made_by, c)}"
    if (folder / FILES["jsonl"]).is_file():
        say(f"images of {made_by.path.name} at step {made_by.step} are there: {folder}")
        return folder
    asked = chosen_prompts(made_by.prompts, c, made_by.step)
    rows = [(split, p, i) for split, prompts in asked.items() for p in prompts for i in range(c.per_prompt)]
    say(f"{len(rows)} images of {made_by.path.name} at step {made_by.step} are made: {folder}")
    images = _make(made_by, c, owner, wait_for_nodes_s, rows)
    write_images(folder, rows, images, f"step{made_by.step}")
    return folder


def pool_folder(made_by: GeneratorRun, root: Path) -> Path:
    """Where all images of a run are kept."""
    return root / POOLS / made_by.path.name


def pool_parts(made_by: GeneratorRun, root: Path) -> dict[str, Path]:
    """Name -> folder of every complete part of a run's pool, the oldest checkpoint first."""
    parts = sorted(pool_folder(made_by, root).glob(f"step_*/{FILES['jsonl']}"))
    return {file.parent.name: file.parent for file in parts}


def chosen_prompts(prompts: Sequence[str], c: ImagesSection, step: int) -> dict[str, list[str]]:
    """{"train": prompts, "test": prompts}, without one in common. Other steps draw others, and a prompt never changes
    its split.

    Args: prompts: in the order of `GeneratorRun.prompts`.   Raises: CheckpointError if a run has one prompt only."""
    if len(prompts) < 2:
        raise CheckpointError(
            f"images need at least 2 training prompts, one of them to be held out, the run has {len(prompts)}; give it"
            " more (prompts.path)"
        )
    count = min(len(prompts) - 1, max(1, round(c.held_out_frac * len(prompts))))
    rng = np.random.default_rng((c.seed, step, 0x3A6F))
    test = [prompts[i] for i in rng.permutation(count)]
    train = [prompts[count + i] for i in rng.permutation(len(prompts) - count)]
    held_out = max(1, round(c.held_out_frac * c.prompts))
    return {"train": train[: c.prompts - held_out], "test": test[:held_out]}


def write_images(folder: Path, rows: Sequence[tuple[str, str, int]], images: np.ndarray, name: str) -> int:
    """Write images [N, H, W, 3] uint8 as annotated data, with the verifier's scores where it can read the prompts.

    Args: rows: (split, prompt, number of the image among those of its prompt). name: in front of ids.   Returns: number
    of records."""
    from PIL import Image

    from zr_ray.judging.held_out_images import is_world

    folder = Path(folder).absolute()
    scored = images.shape[1:3] == (64, 64) and is_world(list(dict.fromkeys(prompt for _, prompt, _ in rows)))
    for split in dict.fromkeys(split for split, _, _ in rows):
        (folder / POOLS / split).mkdir(parents=True, exist_ok=True)

    def items() -> Iterator[AnnotatedImage]:
        for (split, prompt, number), image in zip(rows, images, strict=True):
            group = f"{name}-{_digest(prompt)[:12]}"
            path = folder / POOLS / split / f"{group}-{number}.png"
            Image.fromarray(image).save(path, compress_level=1)
            scores, truth = _verified(image, prompt, split) if scored else ({}, {})
            origin = "generated" if scored else UNSCORED
            yield AnnotatedImage(f"{group}-{number}", group, split, prompt, path, scores, origin, truth)

    write_annotations(folder, items())
    return len(rows)


def _verified(image: np.ndarray, prompt: str, split: str) -> tuple[dict, dict[str, float]]:
    """(scores, truth) by the verifier; a training score is a bin of the rubric."""
    from zr_ray.world.verifier.scores import verify

    truth = {name: float(score) for name, score in verify(image, prompt).items() if name in DIMENSIONS}
    if split != "train":
        return truth, truth
    return {name: min(PAPER.bins, key=lambda bin, s=score: abs(bin - s)) for name, score in truth.items()}, truth


def _make(made_by: GeneratorRun, c: ImagesSection, owner: str, wait_s: float, rows: Sequence[tuple]) -> np.ndarray:
    """[N, H, W, 3] uint8 by a fleet of generators, each with its share of the rows."""
    from zr_ray.models.generators.load import generator_folder
    from zr_ray.run.learners import learner_environment
    from zr_ray.run.observe import wait_for
    from zr_ray.run.placement import Fleet
    from zr_ray.run.travel import portable
    from zr_ray.workers.image_maker import ImageMaker

    actor = made_by.config.actor.model_copy(update={"threads": c.threads, "gpus": min(c.gpus, 1.0), "workers": 1})
    arguments = (portable(generator_folder(made_by.config.generator.path)), made_by.config.generator, actor)
    fleet = Fleet(
        ImageMaker,
        c,
        f"{owner}/generator",
        (*arguments, made_by.checkpoint),
        environment=learner_environment(c, 1),
        start_deadline_s=c.deadline_s,
        wait_for_nodes_s=wait_s,
    )
    shares = [range(n, len(rows), c.workers) for n in range(c.workers)]
    with fleet:
        asked = [
            worker.make.remote(
                [rows[i][1] for i in share],
                [(c.seed, made_by.step, int(_digest(rows[i][1])[:8], 16), rows[i][2]) for i in share],
            )
            for worker, share in zip(fleet.workers, shares, strict=True)
            if share
        ]
        answers = wait_for(asked, c.deadline_s, f"images of {made_by.path.name}")
    images = np.zeros((len(rows), *answers[0].shape[1:]), np.uint8)
    for share, answer in zip([s for s in shares if s], answers, strict=True):
        images[list(share)] = answer
    return images


def _key(made_by: GeneratorRun, c: ImagesSection) -> str:
    """8 hex digits of what decides the images beside the checkpoint's step: a run that was started anew under an old
    name has other weights."""
    manifest = (made_by.checkpoint / "manifest.json").read_bytes()
    told = [c.prompts, c.per_prompt, c.held_out_frac, c.seed, hashlib.sha256(manifest).hexdigest()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
