"""A pool of generated images with what the verifier reads in them: packed arrays, made shard by shard, cached by the
hash of its recipe.

`images.npy` and the reading are enough to score an image under any prompt, so that edited prompts cost no second
reading. A pool is made by `jobs/data/make_image_pool.py`; several processes may make shards of one pool side by side.
Axes: N images, P prompts, O = 6 objects kept per image (what a verifier reading holds beyond that is dropped), L
degradation levels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zr_ray.errors import DataError
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.reading_chains import relations_of
from zr_ray.world.scene import COLORS, LEVELS, SHAPES, SIZES
from zr_ray.world.verifier.reading import SceneReading, SeenObject, read_scene
from zr_ray.world.verifier.scores import alignment_score, plausibility_score, quality_scores

OBJECTS = 6
SIDES = ("", "left", "right")
CACHE = Path(os.environ.get("ZR_RAY_CACHE", "~/.cache/zr_ray")).expanduser() / "pools"
"""Where pools are made and looked for; outside the working directory, which a job would upload."""
OBJECT_FIELDS = ("size", "color", "shape", "x", "base", "floating", "shadow", "grounded")


@dataclass(frozen=True)
class SamplingShare:
    """A way to sample, and the share of a pool that is sampled so."""

    steps: int
    guidance_scale: float
    """w of pos + w (pos - neg)."""
    share: float
    """Weight against the other shares."""


TRAINING_SHARES = (
    SamplingShare(8, 0.0, 0.50),
    SamplingShare(8, 1.5, 0.12),
    SamplingShare(4, 0.0, 0.12),
    SamplingShare(4, 1.5, 0.12),
    SamplingShare(8, 0.75, 0.03),
    SamplingShare(16, 0.0, 0.04),
    SamplingShare(16, 1.5, 0.03),
    SamplingShare(2, 1.5, 0.04),
)
"""Half of what rewards are trained on (8 steps, no guidance), the rest better, rougher, or (2 steps, which is one model
call) blobs. Ours."""


@dataclass(frozen=True)
class PoolRecipe:
    """All that decides what a pool holds."""

    prompts: tuple[str, ...]
    images_per_prompt: int
    shares: tuple[SamplingShare, ...]
    seed: int
    generator: str
    """Hash of the generator's weights (`weights_hash`)."""
    shard_images: int = 2048

    @property
    def key(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return CACHE / self.key

    @property
    def count(self) -> int:
        return len(self.prompts) * self.images_per_prompt

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_images)


def weights_hash(folder: Path) -> str:
    """16 hex digits over every weight file of a pipeline folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


PoolSampler = Callable[[Sequence[str], Sequence[int], SamplingShare], np.ndarray]
"""(N prompts, N noise seeds, how) -> [N, 64, 64, 3] uint8."""


def plan_pool(recipe: PoolRecipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per image its prompt, its share and its noise seed, in random order, each prompt `images_per_prompt` times. Each
    [N] int64."""
    rng = np.random.default_rng((recipe.seed, 0x9001))
    weights = np.array([share.share for share in recipe.shares])
    prompt = rng.permutation(np.tile(np.arange(len(recipe.prompts)), recipe.images_per_prompt))
    share = rng.choice(len(weights), recipe.count, p=weights / weights.sum())
    return prompt, share, rng.integers(0, 2**48, recipe.count)


def make_shard(recipe: PoolRecipe, index: int, sample: PoolSampler) -> Path:
    """Sample, read and write one shard; returns its file, which appears complete or not at all."""
    part = slice(index * recipe.shard_images, min(recipe.count, (index + 1) * recipe.shard_images))
    prompt, share, seed = (column[part] for column in plan_pool(recipe))
    images = np.zeros((len(prompt), 64, 64, 3), np.uint8)
    for number, how in enumerate(recipe.shares):
        chosen = np.flatnonzero(share == number)
        if len(chosen):
            images[chosen] = sample([recipe.prompts[prompt[i]] for i in chosen], seed[chosen].tolist(), how)
    columns = packed_readings([read_scene(image) for image in images])
    path = recipe.folder / f"shard-{index:04d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with open(partial, "wb") as file:
        np.savez(file, images=images, prompt=prompt, share=share, seed=seed, **columns)
    os.replace(partial, path)
    return path


def packed_readings(readings: Sequence[SceneReading]) -> dict[str, np.ndarray]:
    """Readings as arrays: objects [N, O, 8] int8 (OBJECT_FIELDS, -1 where there is none), count [N], levels [N, L],
    light, ground, overlap [N]."""
    objects = np.full((len(readings), OBJECTS, len(OBJECT_FIELDS)), -1, np.int8)
    for row, reading in zip(objects, readings, strict=True):
        for slot, item in zip(row, reading.objects, strict=False):
            numbers = (SIZES.index(item.size), COLORS.index(item.color), SHAPES.index(item.shape), item.x, item.base)
            slot[:] = (*numbers, item.floating, SIDES.index(item.shadow), item.grounded)
    return {
        "objects": objects,
        "levels": np.array([[r.levels[name] for name in LEVELS] for r in readings], np.float32).reshape(
            -1, len(LEVELS)
        ),
        "light": np.array([SIDES.index(r.light) for r in readings], np.int8),
        "ground": np.array([-1 if r.ground is None else r.ground for r in readings], np.int8),
        "overlap": np.array([r.overlap for r in readings], bool),
    }


@dataclass(frozen=True)
class ImagePool:
    """A pool in memory, images mapped from disk."""

    prompts: tuple[str, ...]
    shares: tuple[SamplingShare, ...]
    images: np.ndarray
    """[N, 64, 64, 3] uint8."""
    prompt: np.ndarray
    """[N] index into prompts."""
    share: np.ndarray
    """[N] index into shares."""
    objects: np.ndarray
    levels: np.ndarray
    light: np.ndarray
    ground: np.ndarray
    overlap: np.ndarray
    scores: np.ndarray
    """[N, D] verifier scores under the own prompt, rubric points, dimensions in order."""

    def __len__(self) -> int:
        return len(self.prompt)

    def reading(self, index: int) -> SceneReading:
        """What the verifier read in an image."""
        return unpacked_reading(
            self.objects[index], self.levels[index], self.light[index], self.ground[index], self.overlap[index]
        )

    def alignment(self, index: int, prompt: str) -> float:
        """Verifier's alignment of an image under any prompt of the world."""
        return alignment_score(self.reading(index), prompt)


def unpacked_reading(objects: np.ndarray, levels: np.ndarray, light: int, ground: int, overlap: bool) -> SceneReading:
    """Inverse of `packed_readings` for one image; relations are recomputed from places, as the verifier computes
    them."""
    seen = tuple(
        SeenObject(
            SIZES[o[0]], COLORS[o[1]], SHAPES[o[2]], int(o[3]), int(o[4]), int(o[5]), SIDES[o[6]], 1.0, bool(o[7])
        )
        for o in objects
        if o[0] >= 0
    )
    known = {name: float(value) for name, value in zip(LEVELS, levels, strict=True)}
    return SceneReading(
        seen, relations_of(seen), SIDES[light], None if ground < 0 else int(ground), bool(overlap), known
    )


def scores_of(reading: SceneReading, prompt: str) -> list[float]:
    """[D] verifier scores from a reading, as `verifier_scores.verify` gives from pixels."""
    scores = {
        "alignment": alignment_score(reading, prompt),
        "plausibility": plausibility_score(reading),
    } | quality_scores(reading)
    return [scores[dimension] for dimension in DIMENSIONS]


def load_pool(recipe: PoolRecipe, *, at_least: int = 0) -> ImagePool:
    """The shards that are there, in order. Raises: DataError if fewer than `at_least` images (0: all of them) are.

    Images are copied once into one file that is then mapped, so that several readers share the memory."""
    paths = sorted(recipe.folder.glob("shard-*.npz"))
    sizes = [min(recipe.shard_images, recipe.count - int(path.stem[6:]) * recipe.shard_images) for path in paths]
    if sum(sizes) < (at_least or recipe.count):
        raise DataError(
            f"wanted {at_least or recipe.count} images in {recipe.folder}, got {sum(sizes)}; run"
            " jobs/data/make_image_pool.py to its end"
        )
    columns: dict[str, list[np.ndarray]] = {}
    mapped = recipe.folder / f"images-{len(paths)}.npy"
    for path in paths:
        with np.load(path) as shard:
            for name in shard.files:
                if name != "images" or not mapped.is_file():
                    columns.setdefault(name, []).append(shard[name])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if "images" in joined:
        partial = mapped.with_suffix(f".{os.getpid()}.tmp")
        with open(partial, "wb") as file:
            np.save(file, joined.pop("images"))
        os.replace(partial, mapped)
    fields = ("objects", "levels", "light", "ground", "overlap")
    scores = np.array(
        [
            scores_of(unpacked_reading(*row), recipe.prompts[prompt])
            for prompt, *row in zip(joined["prompt"], *(joined[name] for name in fields), strict=True)
        ]
    )
    return ImagePool(
        recipe.prompts,
        recipe.shares,
        np.load(mapped, mmap_mode="r"),
        joined["prompt"],
        joined["share"],
        **{name: joined[name] for name in fields},
        scores=scores,
    )
