"""AGIQA-3K (Li et al., arXiv 2306.04717): mean opinion scores of 2,982 images, 300 prompts, ten generator settings.

Source, read: github.com/lcysyzxdxc/AGIQA-3k-Database at 30ded2b, README and data.csv itself (MIT license, Copyright (c)
2023 lcysyzxdxc); every row of data.csv has been through this adapter. Layout: data.csv with name, prompt, adj1, adj2,
style, mos_quality, std_quality, mos_align, std_align, and AGIQA-3K.zip with the images. "Normalized MOS": both run from
0 to 5 with mean 2.5 (seen: 0..4.49, 0.02..4.29).

    realism   <- mos_quality, s = 1 + 4 m / 5. "Perception": technical quality and artifacts, but people also count
    beauty alignment <- mos_align, the same
Sets of the same kind with one opinion score (columns name, prompt, mos; AIGIQA-20K, and AIGCIQA2023 as a table) are
read, too:
    realism   <- mos; `mos_to` names another dimension, `mos_range` the scale if it is not 0..5
No file of that kind was seen; the column names are those that its readers use.
A mean over raters is one number: their spread (std_*) has no place in the format. Being normalized, 3 here is not the
rubric's 3; order and gaps within a prompt are meaningful, the level is only linear in theirs.
Splits: none published; all test by default, `train_frac` and `dev_frac` take prompts out of it.
"""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, prompt_group, split_by_prompt
from zr_ray.data.adapters.fields import annotated, number, text, to_rubric
from zr_ray.data.adapters.sources import csv_columns, csv_rows, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.errors import ConfigError
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import PAPER

OPINIONS = {"realism": "mos_quality", "alignment": "mos_align"}
ONE_OPINION = "mos"
LOW, HIGH = 0, 5


def convert(
    source: Path,
    images: Path,
    root: Path,
    *,
    train_frac: float = 0.0,
    dev_frac: float = 0.0,
    mos_to: str = "realism",
    mos_range: tuple[float, float] = (LOW, HIGH),
    **options,
) -> Summary:
    """Convert AGIQA-3K, or a CSV of one mean opinion score.

    Args: source: data.csv, or the folder that holds it; any other CSV by its name. images: folder of the images.
    train_frac, dev_frac: shares of the prompts; the rest is test. mos_to: dimension of a column `mos`. mos_range: worst
    and best value of the opinions. options: those of `Conversion`.   Raises: DataError,
    ConfigError."""
    low, high = mos_range
    if not low < high:
        raise ConfigError(f"wanted mos_range from the worst to the best value, got {low:g} {high:g}; swap them")
    if mos_to not in PAPER.dimensions:
        raise ConfigError(f"wanted mos_to one of {', '.join(PAPER.dimensions)}, got {mos_to!r}; correct the name")
    to = Conversion("agiqa3k", images, root, **options)
    files = source_files(Path(source), ("data.csv",))
    columns = {file: _opinions(file, mos_to) for file in files}

    def parse(where: str, at: tuple[dict[str, str], dict]) -> tuple[str, AnnotatedImage] | None:
        asked, row = at
        name, prompt = text(row, "name", where), text(row, "prompt", where)
        opinions = {d: to_rubric(number(row, column, where, low, high), low, high) for d, column in asked.items()}
        split = split_by_prompt(prompt, train_frac, dev_frac)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where) or (image := to.place(name, where)) is None:
            return None
        scores = {d: annotated([score], split) for d, score in opinions.items()}
        return where, AnnotatedImage(Path(name).stem, group, split, prompt, image, scores, "agiqa3k")

    rows = (
        (where, (asked, row))
        for file, asked in columns.items()
        for where, row in csv_rows(file, ("name", "prompt", *asked.values()))
    )
    to.annotations(to.parsed(rows, parse))
    return to.finish(
        "std_quality and std_align, the spread over raters, have no place in the format and are not converted"
        if any(ONE_OPINION not in asked.values() for asked in columns.values())
        else f"mos is one opinion of the whole image and became {mos_to}; --mos-to names another dimension"
    )


def _opinions(file: Path, mos_to: str) -> dict[str, str]:
    """Dimension -> column of a file, by its header."""
    found = csv_columns(file)
    return {mos_to: ONE_OPINION} if ONE_OPINION in found and "mos_quality" not in found else OPINIONS
