"""Write the built-in rubric world in the on-disk format. SIMULATED prompts, images, scores and reasoning, never human
data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zr_ray.config.sections import DataSection
from zr_ray.data.annotations import write_annotations
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.world.annotators import AnnotatorPool
from zr_ray.world.render import render
from zr_ray.world.sampling import sample_group, sample_known_group

_STREAMS = {"train": 1, "dev": 2, "test": 3}
"""Second word of every seed: splits never share a stream of prompts and scenes."""
NOTE_FILE = "world.json"
"""Says what the folder is and how it was made."""


def data_folder(config: DataSection, run_path: Path) -> Path:
    """Folder of the annotated data a job works on; writes the simulated world into the run folder if the configuration
    names none (once per run)."""
    if config.path is not None:
        return config.path
    folder = run_path / "data"
    if not (folder / "annotations.jsonl").is_file():
        from zr_ray.world.default_data import write_default_data  # it needs this module

        write_default_data(folder, config.world)
    return folder


def write_world(
    root: Path | str, *, train_groups: int, test_groups: int, candidates: int = 4, seed: int = 0, dev_groups: int = 0
) -> int:
    """Write images and `annotations.jsonl`; the same arguments give the same bytes.

    Train items carry one label per dimension from the annotation workflow and the oracle reasoning, and no held-out
    prompt (`prompts.is_held_out`); dev and test items carry five annotators' scores; all carry the true scores. The
    annotation file is written last and atomically: if it is there, all is.
    Args: *_groups: prompts per split. candidates: images per prompt, at least 2. Returns: number of images written.
    Raises: DataError on a negative number of groups, no group at all, or fewer than 2 candidates.
    """
    groups = {"train": train_groups, "dev": dev_groups, "test": test_groups}
    if min(groups.values()) < 0 or not sum(groups.values()) or candidates < 2 or seed < 0:
        raise DataError(
            f"wanted some groups, at least 2 candidates, a seed from 0, got {groups}, {candidates}, {seed}; correct"
            " them"
        )
    root = Path(root).absolute()
    (root / "images").mkdir(parents=True, exist_ok=True)
    note = {
        "simulated": True,
        "source": "zr_ray built-in rubric world",
        "groups": groups,
        "candidates": candidates,
        "seed": seed,
    }
    (root / NOTE_FILE).write_text(json.dumps(note, indent=1) + "\n")
    pool = AnnotatorPool(seed)
    write_annotations(
        root, (item for split, count in groups.items() for item in _items(root, pool, split, count, candidates, seed))
    )
    return sum(groups.values()) * candidates


def _items(
    root: Path, pool: AnnotatorPool, split: str, count: int, candidates: int, seed: int
) -> Iterator[AnnotatedImage]:
    """Render and save the images of a split, group after group, and yield their records."""
    (root / "images" / split).mkdir(exist_ok=True)
    for number in range(count):
        # The last word keeps scenes and annotators apart and is never 0: numpy's seeds ignore trailing zeros.
        draw = sample_known_group if split == "train" else sample_group
        members = draw(np.random.default_rng((seed, _STREAMS[split], number, 1)), candidates)
        truths = [member.truth for member in members]
        rng = np.random.default_rng((seed, _STREAMS[split], number, 2))
        scores = pool.training_scores(rng, truths) if split == "train" else pool.test_scores(rng, truths)
        group = f"{split}-{number:06d}"
        for index, (member, given) in enumerate(zip(members, scores, strict=True)):
            path = root / "images" / split / f"{number:06d}-{index}.png"
            Image.fromarray(render(member.scene)).save(path, compress_level=1)
            if given:
                yield AnnotatedImage(
                    f"{group}-{index}",
                    group,
                    split,
                    member.prompt,
                    path,
                    given,
                    "rendered",
                    member.truth,
                    member.reasoning if split == "train" else {},
                )
