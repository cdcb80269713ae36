"""The built-in data of a run: rendered scenes, and beside them generated images where the configuration asks."""

from __future__ import annotations

from pathlib import Path

from zr_ray.config.sections import WorldSection
from zr_ray.data.mix import mix_annotations
from zr_ray.world.build import write_world
from zr_ray.world.packed_pool import GENERATED, unpack_pool
from zr_ray.world.pool_annotations import Share, write_pool_annotations

EDITS = 0.5
"""Edited prompts per generated training prompt: further groups, scored in alignment only."""


def write_default_data(folder: Path, world: WorldSection) -> None:
    """Write the annotated data of a run; the annotation file comes last. The same section gives the same data.

    Raises: DataError if more generated prompts are asked for than the package holds."""
    sizes = world.model_dump(exclude={"generated_train_groups", "generated_test_groups"})
    wanted = {"train": world.generated_train_groups, "test": world.generated_test_groups}
    if not any(wanted.values()):
        write_world(folder, **sizes)
        return
    shares = {
        split: Share(unpack_pool(GENERATED, split), groups, world.candidates, EDITS if split == "train" else 0.0)
        for split, groups in wanted.items()
        if groups
    }
    write_world(folder / "rendered", **sizes)
    write_pool_annotations(folder / "generated", shares, seed=world.seed)
    mix_annotations(folder, {"rendered": folder / "rendered", "generated": folder / "generated"})
    (folder / "world.json").write_text((folder / "rendered" / "world.json").read_text())
