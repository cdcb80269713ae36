"""Prompt lists as files: plain text, CSV, TSV or JSON lines, as the public sets come.

Left out on purpose: their questions and categories; a reward model reads the prompt alone.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from zr_ray.errors import DataError

COLUMNS = ("prompt", "Prompt", "caption", "text", "Prompts", "description", "TEXT")
"""Names under which public sets keep their prompts, tried in this order."""


def read_prompts(path: Path, column: str | None = None) -> list[str]:
    """The different prompts of a list, in its order, stripped, without empty ones.

    .txt has one a line, .jsonl a key `column`, .csv and .tsv a column of that name. Raises: DataError naming file and
    what is missing."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read prompts from {path}: {error}; give a text, CSV, TSV or JSON-lines file") from None
    kind = path.suffix.lower()
    if kind == ".txt":
        found = text.splitlines()
    elif kind == ".jsonl":
        rows = [_json_row(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [row[_column(path, list(row), column)] for row in rows]
    elif kind in (".csv", ".tsv"):
        rows = list(csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if kind == ".tsv" else ","))
        name = _column(path, list(rows[0]) if rows else [], column)
        found = [row[name] for row in rows]
    else:
        raise DataError(
            f"{path} must end in .txt, .csv, .tsv or .jsonl, got {kind or 'no suffix'}; rename it, or convert it"
        )
    prompts = list(dict.fromkeys(" ".join(str(prompt).split()) for prompt in found if prompt and str(prompt).strip()))
    if not prompts:
        raise DataError(f"{path} holds no prompt; give a list with at least one")
    return prompts


def split_prompts(prompts: list[str], held_out: int) -> tuple[list[str], list[str]]:
    """(training, held-out): every so many-th prompt is held out, so that both have the list's mix.

    Raises: DataError unless at least as many are left for training."""
    if len(prompts) < 2 * held_out:
        raise DataError(
            f"{held_out} held-out prompts need a list of at least {2 * held_out}, got {len(prompts)}; lower"
            " prompts.held_out"
        )
    chosen = {len(prompts) * i // held_out for i in range(held_out)}
    return [p for i, p in enumerate(prompts) if i not in chosen], [p for i, p in enumerate(prompts) if i in chosen]


def _json_row(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number} is not JSON: {error}; correct the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number} must be an object, got {type(row).__name__}; correct the line")
    return row


def _column(path: Path, names: list[str], column: str | None) -> str:
    wanted = (column,) if column is not None else COLUMNS
    for name in wanted:
        if name in names:
            return name
    raise DataError(
        f"{path} must have a column {' or '.join(wanted)}, got {', '.join(names) or 'none'}; set prompts.column"
    )
