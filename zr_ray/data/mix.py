"""Several annotated data sets as one: so that a judge can be trained on rendered, generated and human data together
(`data.path`).

Left out on purpose: weights per source; a set counts by the pairs that it holds, so take more or fewer prompts of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from zr_ray.data.annotations import read_annotations, write_annotations
from zr_ray.data.rubrics import read_rubric
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER, Rubric


def mix_annotations(
    root: Path | str, sources: Mapping[str, Path], *, splits: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, int]:
    """Copy the images of every source into `root/images/<name>` and write one `annotations.jsonl`, last and atomically.

    Ids and groups get the source's name in front, so equal ids of two sources do not meet; all else stays, `origin`
    too.
    Args: sources: name -> folder of a data set. splits: name -> the splits taken from it; all where a name is absent.
    Returns: name -> records taken.   Raises: DataError on a broken source, an unfit name, or a source that gives
    nothing."""
    root = Path(root).absolute()
    counts = dict.fromkeys(sources, 0)
    unfit = [name for name in sources if not name.replace("_", "").replace("-", "").isalnum()]
    if unfit or not sources:
        raise DataError(
            f"wanted sources named by letters, digits, - and _, got {unfit or 'none'}; call them e.g. rendered=FOLDER"
        )
    if any(Path(folder).resolve() == root.resolve() for folder in sources.values()):
        raise DataError(f"{root} is one of the sources and would be overwritten; name another folder")

    rubric = _rubric_of_all(sources)

    def items() -> Iterator[AnnotatedImage]:
        for name, folder in sources.items():
            wanted = (splits or {}).get(name)
            for number, item in enumerate(read_annotations(folder)):
                if wanted is not None and item.split not in wanted:
                    continue
                path = root / "images" / name / item.split / f"{number:06d}{item.image.suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(item.image, path)
                counts[name] += 1
                yield replace(item, id=f"{name}/{item.id}", group=f"{name}/{item.group}", image=path)
            if not counts[name]:
                raise DataError(
                    f"{folder}: wanted records of split {', '.join(wanted or ())}, got none; choose another split or"
                    " source"
                )

    root.mkdir(parents=True, exist_ok=True)
    write_annotations(root, items(), rubric=rubric)
    return counts


def _rubric_of_all(sources: Mapping[str, Path]) -> Rubric:
    """Dimensions of all sources, in the order in which they come; the paper's first. One scale: scores of two scales
    cannot be mixed."""
    rubrics = {name: read_rubric(folder) for name, folder in sources.items()}
    scales = {rubric.bins: name for name, rubric in rubrics.items()}
    if len(scales) > 1:
        (_, one), (_, other) = list(scales.items())[:2]
        raise DataError(
            f"wanted sources on one scale, {one} has {rubrics[one].scale_text()} and {other} has"
            f" {rubrics[other].scale_text()}; rescale one of them"
        )
    names = dict.fromkeys(d for rubric in rubrics.values() for d in rubric.dimensions)
    return Rubric(
        (*(d for d in PAPER.dimensions if d in names), *(d for d in names if d not in PAPER.dimensions)), *scales
    )
