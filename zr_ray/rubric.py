"""Dimensions, score scale and the text a judge reads and writes.

A judge folder may carry `scoring_format.json` (the fields of `ScoringFormat`); without one, `ScoringFormat()` applies,
which any instruction-tuned Hugging Face VLM can follow. Nothing else in the code knows which judge runs.
Left out on purpose: per-dimension scales; the paper uses one scale for all four dimensions.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from zr_ray.errors import JudgeError

DIMENSIONS = ("alignment", "realism", "aesthetics", "plausibility")
"""Text-image alignment, realism, aesthetics, physical plausibility (method section 1), in this order in every [.., D]
tensor."""

SCORE_BINS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""S: nine half-points; the five integers are rubric anchors."""

SCORE_RANGE = SCORE_BINS[-1] - SCORE_BINS[0]
"""S_max - S_min = 4 rubric points."""

FORMAT_FILE = "scoring_format.json"

_RUBRIC = {
    "alignment": (
        "text-image alignment: does the image show what the prompt asks for, objects, attributes, counts and"
        " relations?\n1 nothing asked for is there; 2 the main subject or most attributes are wrong; 3 the subject is"
        " right, one important request is missed; 4 only a small detail differs; 5 every request is met."
    ),
    "realism": (
        "realism: is the image free of noise, blur, compression blocks and generation artefacts?\n"
        "1 artefacts everywhere; 2 strong artefacts on the subject; 3 visible artefacts; 4 faint artefacts; 5 none."
    ),
    "aesthetics": (
        "aesthetics: are colours, light and composition pleasing?\n"
        "1 unpleasant; 2 several clear flaws; 3 one clear flaw; 4 a small flaw; 5 harmonious throughout."
    ),
    "plausibility": (
        "physical plausibility: do support, shadows, contact and occlusion obey everyday physics?\n"
        "1 impossible scene; 2 several violations; 3 one clear violation; 4 a slight violation; 5 none."
    ),
}


@dataclass(frozen=True)
class ScoringFormat:
    """How a judge is asked and how its answer is read. Text only; token ids come from `label_token_ids`."""

    labels: tuple[str, ...] = tuple("123456789")
    """[K] answer text of each score bin; every one must be exactly one token."""
    marker: str = "Score: "
    """Text right before the label. The label token after the last marker is the score token."""
    system: str = (
        "You rate one quality of a generated image. Look at the image, reason step by step about the question, then end"
        " with a line 'Score: N', N one digit from 1 to 9, where 1 means rubric score 1.0, 2 means 1.5, and so on to 9"
        " for 5.0."
    )
    """System prompt; empty for none."""
    questions: dict[str, str] = field(
        default_factory=lambda: {d: f"Prompt: {{prompt}}\nRate {text}" for d, text in _RUBRIC.items()}
    )
    """Per dimension the user text beside the image; `{prompt}` is replaced by the image's prompt."""
    direct_prefix: str = ""
    """Text put before the marker when the judge answers without reasoning (for example an empty thinking block)."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(SCORE_BINS):
            raise JudgeError(
                f"labels must be {len(SCORE_BINS)}, one per score bin, got {len(self.labels)}: {self.labels}"
            )
        if len(set(self.labels)) != len(self.labels):
            raise JudgeError(
                f"labels must differ from one another, got {self.labels}; change `labels` in {FORMAT_FILE}"
            )
        missing = [d for d in DIMENSIONS if "{prompt}" not in self.questions.get(d, "")]
        if missing:
            raise JudgeError(
                f"`questions` needs a text with {{prompt}} for every dimension, missing: {', '.join(missing)}"
            )

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
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise JudgeError(f"{path} has unknown fields {sorted(unknown)}; known: {[f.name for f in fields(cls)]}")
        if "labels" in raw:
            raw["labels"] = tuple(raw["labels"])
        return cls(**raw)

    def save(self, judge: Path | str) -> None:
        """Write the format beside the weights, so that the folder is complete on its own."""
        (Path(judge) / FORMAT_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")

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
