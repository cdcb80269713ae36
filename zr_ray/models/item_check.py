"""Whether a judge can be asked about an item, found when data is loaded and not in the middle of a run."""

from __future__ import annotations

from zr_ray.config.workers import RolloutSection
from zr_ray.data.prompts import control_token_fault
from zr_ray.data.run_data import Need
from zr_ray.errors import DataError
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.records import AnnotatedImage

_SLACK = 8
"""Tokens by which a question may differ from its template plus its prompt: words merge where the two meet."""


class JudgeItemCheck:
    """Callable: why a judge cannot be asked about an item within a run's limits, or None. For `data.run_data`."""

    def __init__(self, text: JudgeText, max_model_len: int | None = None, max_new_tokens: int = 1) -> None:
        """max_model_len: longest question, image and output together, tokens; None: the model's own limit.
        max_new_tokens: length limit of an output; 1 for a direct score."""
        from transformers import AutoConfig

        self.text, self.new_tokens = text, max_new_tokens
        own = getattr(AutoConfig.from_pretrained(text.folder).get_text_config(), "max_position_embeddings", None)
        known = [limit for limit in (max_model_len, own) if limit]
        self.limit = min(known) if known else None
        self._preprocess = PixelPreprocessor.load(text.folder)
        self._template = max(len(self.text.question("x", d)) for d in self.text.rubric.dimensions)
        self._lengths: dict[str, int] = {}
        self._exact: set[str] = set()  # prompts whose length is counted out
        self._longest, self._image, self._image_tokens = 0, (0, 0), 0

    @classmethod
    def of_engine(cls, text: JudgeText, rollout: RolloutSection) -> JudgeItemCheck:
        """For items that rollout engines are asked about with reasoning."""
        return cls(text, rollout.max_model_len, rollout.max_new_tokens)

    @property
    def need(self) -> Need | None:
        """Of the items asked about so far; None before the first."""
        return Need(self._longest, self._image) if self._longest else None

    def __call__(self, item: AnnotatedImage, height: int, width: int) -> str | None:
        """height, width: of the item's image, pixels."""
        fault = control_token_fault(item.prompt, self.text.control_tokens)
        if fault is not None:
            return fault
        try:
            image = self._preprocess.image_tokens(height, width)
        except DataError as error:
            return str(error)
        if image > self._image_tokens:
            self._image, self._image_tokens = (height, width), image
        # the question holds one placeholder of the image
        room = (2**31 if self.limit is None else self.limit) - self.new_tokens - image + 1
        question = self._question_tokens(item.prompt, room)
        self._longest = max(self._longest, question + image - 1)
        if question <= room:
            return None
        if self._template > room:
            return (
                f"an image of {width} x {height} pixels takes {image} tokens, with {self.new_tokens} of the output and"
                f" {self._template} of the question more than {self.limit}; scale it down, lower the largest size in"
                " the judge's image processor, or raise rollout.max_model_len"
            )
        return (
            f"the question must have at most {room} tokens ({self.limit} less {image} of the image and"
            f" {self.new_tokens} of the output), got {question}; shorten the prompt, or raise rollout.max_model_len"
        )

    def _question_tokens(self, prompt: str, room: int) -> int:
        """Tokens of the longest question about a prompt; a bound that fits is not counted out (one encoding a
        prompt instead of one a dimension)."""
        if self._lengths.get(prompt, room + 1) > room and prompt not in self._exact:
            bound = (
                self._template
                + _SLACK
                + len(self.text.tokenizer.encode(prompt, add_special_tokens=False, verbose=False))
            )
            if bound > room:
                bound = max(len(self.text.question(prompt, d)) for d in self.text.rubric.dimensions)
                self.text.forget()
                self._exact.add(prompt)
            self._lengths[prompt] = bound
        return self._lengths[prompt]
