"""GenAI-Bench (Li et al., arXiv 2406.13743; data of arXiv 2404.01291): alignment of six generators' images, three
raters each.

Not to be confused with TIGER-Lab's GenAI-Bench of arena votes (arXiv 2406.04485), which has no scores and is not
covered.
Source, read: github.com/linzhiqiu/t2v_metrics (Apache-2.0), class GenAIBench_Image of dataset.py at 6ecb74f, and
genai_image.json itself at 60ce07b: 527 prompts, all of which have been through this adapter. Two ratings there are
misprints (41 and 33), so that file needs skip_broken, which leaves out those two images. The 1,600-prompt set
(huggingface.co/datasets/BaiqiL/GenAI-Bench-1600) is read by the same class; its JSON was not seen. Layout:
genai_image.json, a JSON object {"00001": {"id", "prompt", "prompt in Chinese", "models":
{"DALLE_3": [5, 5, 5], ...}}}; images at MODEL/ID.jpeg, one zip per model.

    alignment <- models.MODEL, 1..5 as it is. Train: the mean of the raters, rounded to half-points; dev and test: all
    of them
Splits: a benchmark, all test by default; `train_frac` and `dev_frac` take prompts out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, prompt_group, split_by_prompt
from zr_ray.data.adapters.fields import ADVICE, annotated, numbers, text
from zr_ray.data.adapters.sources import json_members, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.errors import DataError
from zr_ray.records import AnnotatedImage


def convert(
    source: Path, images: Path, root: Path, *, train_frac: float = 0.0, dev_frac: float = 0.0, **options
) -> Summary:
    """Convert GenAI-Bench (images).

    Args: source: genai_image.json, or the folder that holds it. images: folder with one folder per model. train_frac,
    dev_frac: shares of the prompts; the rest is test. options: those of `Conversion`.   Raises:
    DataError, ConfigError."""
    to = Conversion("genai_bench", images, root, **options)

    def parse(where: str, at: tuple[str, dict, str]) -> tuple[str, AnnotatedImage] | None:
        number, row, model = at
        prompt = text(row, "prompt", where)
        votes = numbers(_models(row, where), model, where, 1, 5)
        if not votes:
            return to.skip("no ratings", where)
        split = split_by_prompt(prompt, train_frac, dev_frac)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where) or (image := to.place(f"{model}/{number}.jpeg", where)) is None:
            return None
        scores = {"alignment": annotated(votes, split)}
        return where, AnnotatedImage(f"{model}/{number}", group, split, prompt, image, scores, "genai_bench")

    to.annotations(to.parsed(_rows(Path(source)), parse))
    return to.finish()


def _rows(source: Path) -> Iterator[tuple[str, tuple[str, dict, str]]]:
    """One row per prompt and model. A record without models goes on as one row, to be refused like any broken
    record."""
    for file in source_files(source, ("genai_image.json",)):
        for where, number, row in json_members(file):
            for model in row["models"] if isinstance(row.get("models"), dict) else ("",):
                yield where, (number, row, model)


def _models(row: dict, where: str) -> dict:
    if not isinstance(row.get("models"), dict):
        raise DataError(f"{where}: wanted {{model: [ratings]}} in 'models', got {row.get('models')!r}; {ADVICE}")
    return row["models"]
