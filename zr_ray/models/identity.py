"""What names a judge: a hash of its weights and files, and a hash of the questions it is asked. Provenance of labels
and replies.

Left out on purpose: signatures; a hash tells two judges apart, it proves no origin.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from zr_ray.errors import JudgeError
from zr_ray.models.judge_text import JudgeText
from zr_ray.rubric import PAPER

_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Files that decide what a judge answers: weights, configuration, tokenizer, processor, scoring format, chat
template."""


def judge_hash(folder: Path | str) -> str:
    """sha256 over names and contents of the folder's files that decide its answers; a model card may change. Raises
    JudgeError if none."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and path.suffix in _SUFFIXES)
    if not any(path.suffix == ".safetensors" for path in files):
        raise JudgeError(f"{folder} must hold safetensors weights, got {[path.name for path in files]}")
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def template_hash(text: JudgeText) -> str:
    """sha256 of everything a judge reads around prompt and image, and of how its answer is read."""
    parts = [repr((text.format.labels, text.format.marker, text.format.direct_prefix))]
    if text.rubric != PAPER:  # hashes of judges with the paper's rubric stay what they were
        parts.append(repr(text.rubric))
    for dimension in text.rubric.dimensions:
        messages = text.format.messages("{prompt}", dimension)
        parts.append(text.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
