"""Dimensions, score scale and the text a judge reads and writes: data of a judge folder and of an annotation set.

A judge folder may carry `scoring_format.json` (the fields of `ScoringFormat`); without one, `ScoringFormat()` applies,
which any instruction-tuned Hugging Face VLM can follow. A data set may carry `rubric.json` (the fields of `Rubric`);
without one, `PAPER` applies. Nothing else in the code knows which judge runs, or what it is asked about.
Left out on purpose: per-dimension scales; the paper uses one scale for all four dimensions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

from zr_ray.errors import DataError, JudgeError, ZrRayError

DIMENSIONS = ("alignment", "realism", "aesthetics", "plausibility")
"""The paper's and the built-in world's: text-image alignment, realism, aesthetics, physical plausibility (method
section 1). Code that works with any judge takes them from its `Rubric`."""

SCORE_BINS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""S of the paper and of the built-in world: nine half-points; the five integers are rubric anchors."""

RESERVED = ("overall", "pooled")
"""No names of dimensions: a choice by everything at once (`data/preferences.py`), and all dimensions of a result
together."""


FORMAT_FILE, RUBRIC_FILE = "scoring_format.json", "rubric.json"
"""Files of a judge folder; the second also stands beside the annotations of a data set."""

_NAME = re.compile(r"\w(?:[\w -]{0,62}\w)?")


@dataclass(frozen=True)
class Rubric:
    """What is scored, and on which scale."""

    dimensions: tuple[str, ...] = DIMENSIONS
    """D names, in this order in every [.., D] tensor."""
    bins: tuple[float, ...] = SCORE_BINS
    """S, K rubric points in ascending order: the D axis's scores, in this order in every [.., K] tensor."""

    def __post_init__(self) -> None:
        unfit = [d for d in self.dimensions if not isinstance(d, str) or not _NAME.fullmatch(d) or d in RESERVED]
        if unfit or not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            raise ZrRayError(
                "dimensions must be different names of letters, digits, spaces, _ and -, at most 64 characters, none of"
                f" {', '.join(RESERVED)}; got {list(self.dimensions)}; rename them"
            )
        numbers = all(type(s) in (int, float) and math.isfinite(s) for s in self.bins)
        if not numbers or len(self.bins) < 2 or any(a >= b for a, b in zip(self.bins, self.bins[1:], strict=False)):
            raise ZrRayError(f"bins must be two or more finite numbers in ascending order, got {list(self.bins)}")
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        object.__setattr__(self, "bins", tuple(map(float, self.bins)))

    @property
    def score_range(self) -> float:
        """S_max - S_min, rubric points."""
        return self.bins[-1] - self.bins[0]

    @property
    def margin(self) -> float:
        """Gap of human scores above which a pair counts for margin HPA, rubric points: an eighth of the scale, the
        paper's half-point."""
        return self.score_range / 8

    def nearest_bin(self, score: float) -> int:
        """Index of the bin nearest to a score; the lower one halfway between two."""
        return min(range(len(self.bins)), key=lambda k: abs(self.bins[k] - score))

    def scale_text(self) -> str:
        """The scale for messages: "9 bins 1, 1.5, ..., 5"."""
        shown = [f"{s:g}" for s in self.bins]
        return f"{len(shown)} bins {', '.join(shown if len(shown) <= 4 else [*shown[:2], '...', shown[-1]])}"


PAPER = Rubric()
"""The paper's four dimensions and nine bins: what a judge folder and a data set mean that say nothing else."""


def require_rubric(wanted: Rubric, judge: Rubric, what: str) -> None:
    """Refuse a judge that cannot be asked about all of `wanted`, or answers on another scale.

    Args: what: who wants it, for the message, for example "the data set /data/own".   Raises: DataError."""
    lacking = [d for d in wanted.dimensions if d not in judge.dimensions]
    if lacking:
        raise DataError(
            f"{what} has the dimensions {', '.join(wanted.dimensions)}, the judge has {', '.join(judge.dimensions)} and"
            f" lacks {', '.join(lacking)}; add questions for them to its {FORMAT_FILE}, or name the set's own"
            f" dimensions in its {RUBRIC_FILE}"
        )
    if wanted.bins != judge.bins:
        raise DataError(
            f"{what} is on the scale of {wanted.scale_text()}, the judge on {judge.scale_text()}; take a judge of that"
            f" scale (`bins` in {FORMAT_FILE}), or rescale the scores and say so in {RUBRIC_FILE}"
        )


_RUBRIC = {
    "alignment": (
        "text-image alignment: does the image show what the prompt asks for, objects, attributes, counts and"
        " relations?\n1 nothing asked for is there; 2 the main subject or most attributes are wrong; 3 the subject is"
        " right, one important request is missed; 4 only a small detail differs; 5 every request is met."
    ),
    "realism": (
        "realism: is the image free of noise, blur, compression blocks and generation artifacts?\n"
        "1 artifacts everywhere; 2 strong artifacts on the subject; 3 visible artifacts; 4 faint artifacts; 5 none."
    ),
    "aesthetics": (
        "aesthetics: are colors, light and composition pleasing?\n"
        "1 unpleasant; 2 several clear flaws; 3 one clear flaw; 4 a small flaw; 5 harmonious throughout."
    ),
    "plausibility": (
        "physical plausibility: do support, shadows, contact and occlusion obey everyday physics?\n"
        "1 impossible scene; 2 several violations; 3 one clear violation; 4 a slight violation; 5 none."
    ),
}


def paper_question(dimension: str) -> tuple[str, dict[float, str]]:
    """(question, {anchor score: what it means}) of one of the paper's dimensions, for people; a judge is asked the
    same."""
    question, points = _RUBRIC[dimension].split("\n")
    told = (point.split(" ", 1) for point in points.rstrip(".").split("; "))
    question = question.partition(": ")[2]
    return question[:1].upper() + question[1:], {float(score): text for score, text in told}


@dataclass(frozen=True)
class ScoringFormat:
    """How a judge is asked and how its answer is read. Text only; token ids come from `label_token_ids`."""

    labels: tuple[str, ...] = ()
    """[K] answer text of each score bin; every one must be exactly one token. Empty: the digits from 1."""
    marker: str = "Score: "
    """Text right before the label. The label token after the last marker is the score token."""
    system: str | None = None
    """System prompt; empty for none. None: one that asks for reasoning, then marker and label."""
    questions: dict[str, str] = field(default_factory=dict)
    """Per dimension the user text beside the image; `{prompt}` is replaced by the image's prompt. Empty: the paper's
    rubric as we word it."""
    direct_prefix: str = ""
    """Text put before the marker when the judge answers without reasoning (for example an empty thinking block)."""
    dimensions: tuple[str, ...] = DIMENSIONS
    """D names, the order of every [.., D] tensor of this judge."""
    bins: tuple[float, ...] = SCORE_BINS
    """[K] rubric points that the labels mean, ascending."""

    def __post_init__(self) -> None:
        rubric, count = self.rubric, len(self.bins)  # refuses dimensions and bins that are none
        if not self.labels and count > 9:
            raise JudgeError(f"`labels` must be given for more than 9 bins, one token each, got {count} bins and none")
        settle = {
            "dimensions": rubric.dimensions,
            "bins": rubric.bins,
            "labels": tuple(self.labels or map(str, range(1, count + 1))),
            "questions": self.questions or self._paper_questions(),
        }
        for name, value in settle.items():
            object.__setattr__(self, name, value)
        if self.system is None:
            object.__setattr__(self, "system", _system(self.labels, self.bins))
        if len(self.labels) != count:
            raise JudgeError(f"labels must be {count}, one per score bin, got {len(self.labels)}: {self.labels}")
        if len(set(self.labels)) != len(self.labels):
            raise JudgeError(
                f"labels must differ from one another, got {self.labels}; change `labels` in {FORMAT_FILE}"
            )
        missing = [d for d in self.dimensions if "{prompt}" not in self.questions.get(d, "")]
        if missing:
            raise JudgeError(
                f"`questions` needs a text with {{prompt}} for every dimension, missing: {', '.join(missing)}"
            )
        unnamed = [d for d in self.questions if d not in self.dimensions]
        if unnamed:
            raise JudgeError(
                f"`questions` has texts for {', '.join(unnamed)}, `dimensions` has {', '.join(self.dimensions)}; add"
                f" them to `dimensions` in {FORMAT_FILE}, or remove the texts"
            )

    def _paper_questions(self) -> dict[str, str]:
        """Questions of the paper's dimensions. Its wording names anchors from 1 to 5, so another scale has none."""
        if self.bins != SCORE_BINS:
            raise JudgeError(
                f"`questions` must be given with `bins` of your own, got bins {self.bins} and no questions"
            )
        return {d: f"Prompt: {{prompt}}\nRate {_RUBRIC[d]}" for d in self.dimensions if d in _RUBRIC}

    @cached_property
    def rubric(self) -> Rubric:
        """Dimensions and scale."""
        try:
            return Rubric(tuple(self.dimensions), tuple(self.bins))
        except ZrRayError as error:
            raise JudgeError(f"{error}; change `dimensions` or `bins` in {FORMAT_FILE}") from error

    @classmethod
    def load(cls, judge: Path | str) -> ScoringFormat:
        """The format of a judge folder, or the default one if it carries none. Raises JudgeError on unknown fields."""
        path = Path(judge) / FORMAT_FILE
        if not path.is_file():
            return cls()
        try:
            raw = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise JudgeError(f"{path} is not JSON: {error}") from error
        known = [f.name for f in fields(cls)]
        unknown = set(raw) - set(known)
        if unknown:
            raise JudgeError(f"{path} has unknown fields {sorted(unknown)}; known: {known}")
        lists = {name: raw[name] for name in ("labels", "dimensions", "bins") if name in raw}
        wrong = [name for name, value in lists.items() if not isinstance(value, list) or not value]
        if wrong:
            raise JudgeError(f"{path}: `{wrong[0]}` must be a list with entries, got {lists[wrong[0]]!r}; correct it")
        return cls(**raw | {name: tuple(value) for name, value in lists.items()})

    def save(self, judge: Path | str) -> None:
        """Write the format beside the weights, so that the folder is complete on its own. The paper's rubric is not
        spelled out: a folder without `dimensions` and `bins` means it."""
        written = asdict(self)
        for name, value in (("dimensions", DIMENSIONS), ("bins", SCORE_BINS)):
            if written[name] == value:
                del written[name]
        (Path(judge) / FORMAT_FILE).write_text(json.dumps(written, indent=1) + "\n")

    def messages(self, prompt: str, dimension: str) -> list[dict]:
        """Chat messages with one image placeholder, for `tokenizer.apply_chat_template`."""
        user = {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": self.questions[dimension].replace("{prompt}", prompt)},
            ],
        }
        return ([{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []) + [
            user
        ]


def _system(labels: Sequence[str], bins: Sequence[float]) -> str:
    """The default system prompt: what each label means."""
    digits = all(len(x) == 1 and x.isascii() and x.isdigit() for x in labels)
    in_order = digits and [int(x) for x in labels] == list(range(int(labels[0]), int(labels[0]) + len(labels)))
    choice = f"one digit from {labels[0]} to {labels[-1]}" if in_order else f"one of {', '.join(labels)}"
    middle = f", {labels[1]} means {bins[1]}, and so on to" if len(labels) > 2 else " and"
    meaning = f"{labels[0]} means rubric score {bins[0]}{middle} {labels[-1]} {'for' if len(labels) > 2 else 'means'}"
    return (
        "You rate one quality of a generated image. Look at the image, reason step by step about the question, then end"
        f" with a line 'Score: N', N {choice}, where {meaning} {bins[-1]}."
    )


def label_token_ids(tokenizer, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Token id of each label. Raises JudgeError unless every label is exactly one token and no two collide."""
    ids = []
    for label in labels:
        tokens = tokenizer.encode(label, add_special_tokens=False)
        if len(tokens) != 1:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise JudgeError(
                f"score label {label!r} must be exactly one token, this tokenizer makes {len(tokens)} of it: {pieces}; "
                f"choose other `labels` in {FORMAT_FILE} (the digits 1..9 are single tokens in Qwen tokenizers)"
            )
        if tokens[0] == tokenizer.unk_token_id:
            raise JudgeError(
                f"score label {label!r} is unknown to this tokenizer; choose other `labels` in {FORMAT_FILE}"
            )
        ids.append(tokens[0])
    if len(set(ids)) != len(ids):
        raise JudgeError(
            f"two score labels share a token: labels {labels} -> ids {ids}; choose other `labels` in {FORMAT_FILE}"
        )
    return tuple(ids)
