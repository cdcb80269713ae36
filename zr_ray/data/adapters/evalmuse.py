"""EvalMuse-40K (Han et al., arXiv 2412.18150): how well images of some twenty generators follow their prompts, rated by
three people.

Source, read: github.com/DYEvaLab/EvalMuse at 0fa141b (README, process/process_train.py, eval.py) and a stored copy of
the dataset card of huggingface.co/datasets/DY-Evalab/EvalMuse (BSD-3-Clause; its dataset_info lists every column).
Layout: train_list.json, a JSON array of {prompt_id, prompt, type, img_path ("SDXL/00110.png"), total_score [int, ...]
1..5, element_score, promt_meaningless [0|1, ...] (the spelling is theirs), split_confidence, attribute_confidence,
fidelity_label}; test.json has the same records with null scores, because the test annotations are not released; images
are in images.zip. The files themselves were not seen: the range 1..5 is that of the paper's method (scores are scaled
by * 4 + 1) and of public consumers.

    alignment <- total_score, already on 1..5. Train: the mean of the annotators, rounded to half-points; dev and test:
    all of them
Prompts that most annotators call meaningless are left out and counted. Element scores and fidelity labels are not
converted. Splits: none with scores but train; `train_frac` and `dev_frac` hold out prompts (default: all train).
"""

from __future__ import annotations

from pathlib import Path

from zr_ray.data.adapters.conversion import Conversion, prompt_group, split_by_prompt
from zr_ray.data.adapters.fields import annotated, numbers, text
from zr_ray.data.adapters.sources import json_records, source_files
from zr_ray.data.adapters.summary import Summary
from zr_ray.records import AnnotatedImage


def convert(
    source: Path, images: Path, root: Path, *, train_frac: float = 1.0, dev_frac: float = 0.0, **options
) -> Summary:
    """Convert EvalMuse-40K.

    Args: source: train_list.json, or the folder that holds it. images: folder that img_path is relative to. train_frac,
    dev_frac: shares of the prompts; the rest is test. options: those of `Conversion`.   Raises:
    DataError, ConfigError."""
    to = Conversion("evalmuse", images, root, **options)

    def parse(where: str, row: dict) -> tuple[str, AnnotatedImage] | None:
        prompt, path = text(row, "prompt", where), text(row, "img_path", where)
        if row.get("total_score") in (None, []):
            return to.skip("no scores (unreleased test annotations)", where)
        votes = numbers(row, "total_score", where, 1, 5)
        meaningless = numbers(row, "promt_meaningless", where, 0, 1) if row.get("promt_meaningless") is not None else ()
        if 2 * sum(meaningless) > len(meaningless):
            return to.skip("prompt called meaningless by most annotators", where)
        split = split_by_prompt(prompt, train_frac, dev_frac)
        group = prompt_group(split, prompt)
        if not to.member(group, prompt, split, where) or (image := to.place(path, where)) is None:
            return None
        return where, AnnotatedImage(
            path, group, split, prompt, image, {"alignment": annotated(votes, split)}, "evalmuse"
        )

    files = source_files(Path(source), ("train_list.json",))
    to.annotations(to.parsed((at for file in files for at in json_records(file)), parse))
    return to.finish("element scores and fidelity labels have no place in the format and are not converted")
