"""AGIQA-3K (Li et al., arXiv 2306.04717): mean opinion scores of 2,982 images, 300 prompts, ten generator settings.

Source, read: github.com/lcysyzxdxc/AGIQA-3k-Database at 30ded2b, README and data.csv itself (MIT licence, Copyright (c)
2023 lcysyzxdxc); every row of data.csv has been through this adapter. Layout: data.csv with name, prompt, adj1, adj2,
style, mos_quality, std_quality, mos_align, std_align, and AGIQA-3K.zip with the images. "Normalized MOS": both run from
0 to 5 with mean 2.5 (seen: 0..4.49, 0.02..4.29).

    realism   <- mos_quality, s = 1 + 4 m / 5. "Perception": technical quality and artefacts, but people also count
    beauty alignment <- mos_align, the same
A mean over raters is one number: their spread (std_*) has no place in the format. Being normalised, 3 here is not the
rubric's 3; order and gaps within a prompt are meaningful, the level is only linear in theirs.
Splits: none published; all test by default, `train_frac` and `dev_frac` take prompts out of it.
"""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, Summary, prompt_group, split_by_prompt
from zr_ray.data.adapters.fields import annotated, number, text, to_rubric
from zr_ray.data.adapters.sources import csv_rows, source_files
from zr_ray.records import AnnotatedImage

OPINIONS = {"realism": "mos_quality", "alignment": "mos_align"}
LOW, HIGH = 0, 5


def convert(
    source: Path, images: Path, root: Path, *, train_frac: float = 0.0, dev_frac: float = 0.0, **options
) -> Summary:
    """Convert AGIQA-3K.

    Args: source: data.csv, or the folder that holds it. images: folder of the images. train_frac, dev_frac: shares of
    the prompts; the rest is test. options: copy_images, skip_broken (`Conversion`).   Raises: DataError,
    ConfigError."""
    to = Conversion("agiqa3k", images, root, **options)

    def parse(where: str, row: dict) -> tuple[str, AnnotatedImage] | None:
        name, prompt = text(row, "name", where), text(row, "prompt", where)
        opinions = {d: to_rubric(number(row, column, where, LOW, HIGH), LOW, HIGH) for d, column in OPINIONS.items()}
        split = split_by_prompt(prompt, train_frac, dev_frac)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where) or (image := to.place(name, where)) is None:
            return None
        scores = {d: annotated([score], split) for d, score in opinions.items()}
        return where, AnnotatedImage(Path(name).stem, group, split, prompt, image, scores, "agiqa3k")

    files = source_files(Path(source), ("data.csv",))
    to.annotations(
        to.parsed((at for file in files for at in csv_rows(file, ("name", "prompt", *OPINIONS.values()))), parse)
    )
    return to.finish(
        "std_quality and std_align, the spread over raters, have no place in the format and are not converted"
    )
