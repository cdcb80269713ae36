"""The text side of a judge: its folder, questions to token ids, outputs to score position and reasoning.

Axes: P prompt tokens, T completion tokens. Needs the folder's tokenizer and configuration, no weights and no torch, so
that a driver can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zr_ray.errors import JudgeError
from zr_ray.rubric import Rubric, ScoringFormat, label_token_ids

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN_JUDGES = {
    "builtin": _ASSETS / "judge",
    "small": _ASSETS / "judge_small",
    "base": _ASSETS / "judge_patch4",
    "teacher": _ASSETS / "teacher",
    "referee": _ASSETS / "referee",
    "student": _ASSETS / "student",
    "student_distilled": _ASSETS / "student_distilled",
    "student_v0": _ASSETS / "student_v0",
}
"""Judges inside the package. `builtin` and `small` have seen rendered scenes only, and no rubric; `base` reasons about
generated images too, and `teacher` is what GDSO made of it. `referee` watches text-to-image training and never rewards.
`student` gives rewards in one token, fitted to the verifier; `student_distilled` does too, taught by `teacher` alone,
as it is with real images. `student_v0` is an earlier student that cannot see what generators make: what a reward that
is not fit looks like."""


THINK, THOUGHT = "<think>", "</think>"
"""What opens and closes the reasoning of thinking models; Qwen's templates open it for the judge."""
NO_THOUGHT = f"\n{THOUGHT}\n\n"
"""What closes an opened block at once, as Qwen's own templates write it with enable_thinking=False."""


def judge_folder(path: str) -> Path:
    """Folder of a judge: a name of BUILTIN_JUDGES, or a Hugging Face folder. Raises JudgeError if there is no model in
    it."""
    folder = BUILTIN_JUDGES.get(path) or Path(path).expanduser()
    if not (folder / "config.json").is_file():
        names = ", ".join(BUILTIN_JUDGES)
        raise JudgeError(
            f"judge.path must be one of {names}, or a Hugging Face model folder with config.json, got {path!r}: no"
            f" {folder / 'config.json'}"
        )
    return folder.resolve()


def control_tokens(tokenizer) -> tuple[str, ...]:
    """Texts that a judge's tokenizer reads as one command instead of as words: its special tokens, and every other
    added token in angle brackets (Qwen's <think> and <tool_call> are not marked special). No prompt may hold one."""
    added = tokenizer.added_tokens_decoder.values()
    marked = {t.content for t in added if t.special or (t.content.startswith("<") and t.content.endswith(">"))}
    return tuple(sorted(marked | set(tokenizer.all_special_tokens)))


class JudgeText:
    """Tokenizer side of a judge: questions to token ids, outputs to text, which tokens are labels and which are
    forbidden."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.folder = Path(folder)
        self.format = ScoringFormat.load(folder)
        self.rubric: Rubric = self.format.rubric
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._require_template()
        self.thinks: bool = self._render("x", self.format.dimensions[0]).rstrip().endswith(THINK)
        """Whether the chat template opens a thinking block: the score then comes after its end."""
        if self.thinks and not self.format.direct_prefix:
            self.format = replace(self.format, direct_prefix=NO_THOUGHT)
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "image_token_id", None) is None:
            raise JudgeError(
                f"{self.folder} must hold a vision-language model, its config.json (model_type {config.model_type}) has"
                " no image_token_id; a text-only model cannot judge images"
            )
        self.control_tokens: tuple[str, ...] = control_tokens(self.tokenizer)
        self.vocab_size: int = config.get_text_config().vocab_size
        self.image_token_id: int = config.image_token_id
        self.label_ids: tuple[int, ...] = label_token_ids(self.tokenizer, self.format.labels)
        self.end_id: int = self._end_token(config)
        self.forbidden_ids: tuple[int, ...] = self._forbidden(config)
        self.marker_ids: tuple[int, ...] = tuple(self.tokenizer.encode(self.format.marker, add_special_tokens=False))
        self._marker = self.format.marker.strip()
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        self._tags = {tag: added[tag] for tag in (THINK, THOUGHT) if tag in added}
        self._questions: dict[tuple[str, str, bool], np.ndarray] = {}

    def _require_template(self) -> None:
        if not self.tokenizer.chat_template:
            raise JudgeError(
                f"the tokenizer in {self.folder} must have a chat template, it has none: a base model without"
                " instruction tuning? Take the instruct model, or put a chat_template.jinja into the folder"
            )

    def _render(self, prompt: str, dimension: str) -> str:
        messages = self.format.messages(prompt, dimension)
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _end_token(self, config) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise JudgeError(
                f"the tokenizer in {self.folder} has no end-of-sequence token; set eos_token in tokenizer_config.json"
            )
        return end

    def _forbidden(self, config) -> tuple[int, ...]:
        """Image, video and special tokens, and embedding rows without a token: a sampled one would break the next
        forward."""
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special} | set(
            self.tokenizer.all_special_ids
        )
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            if getattr(config, name, None) is not None:
                special.add(getattr(config, name))
        special |= set(range(len(self.tokenizer), self.vocab_size))
        return tuple(sorted(special - {self.end_id} - set(self.label_ids)))

    def question(self, prompt: str, dimension: str, direct: bool = False) -> np.ndarray:
        """[P] int32 chat-formatted question with one image placeholder; with `direct` the marker is already written, so
        that the next token is the score. Raises JudgeError if the chat template puts none or several placeholders."""
        key = (prompt, dimension, direct)
        if key not in self._questions:
            text = self._render(prompt, dimension)
            if direct:
                text += self.format.direct_prefix + self.format.marker
            ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=np.int32)
            placeholders = int((ids == self.image_token_id).sum())
            if placeholders != 1:
                raise JudgeError(
                    f"the chat template of {self.folder} must put exactly one image placeholder, got {placeholders}"
                )
            self._questions[key] = ids
        return self._questions[key]

    def forget(self) -> None:
        """Drop the cached questions."""
        self._questions.clear()

    def answer(self, bin_index: int, reasoning: str | None = None) -> tuple[np.ndarray, int]:
        """([T] int32 tokens, score index) of a written answer: reasoning, marker, label and end; without reasoning the
        label alone, for a direct question that already ends with the marker."""
        label = self.label_ids[bin_index]
        if reasoning is None:
            return np.asarray([label], dtype=np.int32), 0
        ending = f"{reasoning}{NO_THOUGHT if self.thinks else chr(10)}"
        body = [*self.tokenizer.encode(ending, add_special_tokens=False), *self.marker_ids]
        return np.asarray([*body, label, self.end_id], dtype=np.int32), len(body)

    def score_index(self, token_ids: Sequence[int]) -> int | None:
        """Position of the score token: the last label token right behind the marker, after the end of a thinking
        block where there is one; None if there is none (malformed output)."""
        labels = set(self.label_ids)
        ids = [int(t) for t in token_ids]
        start = self._answer_start(ids)
        for i in range(len(ids) - 1, start - 1, -1):
            if ids[i] in labels and self.tokenizer.decode(ids[start:i]).rstrip().endswith(self._marker):
                return i
        return None

    def _answer_start(self, ids: list[int]) -> int:
        """Where the answer begins: behind the last closing tag; at the end of a thought that was never closed."""
        if THOUGHT not in self._tags:
            return 0
        ends = [i for i, token in enumerate(ids) if token == self._tags[THOUGHT]]
        if ends:
            return ends[-1] + 1
        return len(ids) if self.thinks or self._tags.get(THINK) in ids else 0

    def reasoning(self, token_ids: Sequence[int], score_index: int | None) -> str:
        """The reasoning text before the marker, for reports."""
        ids = [int(t) for t in token_ids]
        text = self.tokenizer.decode(
            ids[:score_index] if score_index is not None else ids, skip_special_tokens=True
        ).strip()
        return text.removesuffix(self._marker).strip() if score_index is not None else text
