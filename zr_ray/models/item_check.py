"""Whether a judge can be asked about an item, found when data is loaded and not in the middle of a run."""

from __future__ import annotations

from zr_ray.config.sections import RolloutSection
from zr_ray.data.prompts import control_token_fault
from zr_ray.errors import ConfigError, DataError
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

    @classmethod
    def of_engine(cls, text: JudgeText, rollout: RolloutSection) -> JudgeItemCheck:
        """For items that rollout engines are asked about with reasoning.   Raises: ConfigError if the engine would
        refuse the judge's own length limit at its start."""
        check = cls(text, rollout.max_model_len, rollout.max_new_tokens)
        if rollout.gpus == 0 and check.limit is not None and check.limit > rollout.max_batched_tokens:
            raise ConfigError(
                f"rollout.max_model_len must be at most rollout.max_batched_tokens ({rollout.max_batched_tokens}) on"
                f" CPU, got null, which is the judge's own limit of {check.limit}; set it to the longest question and"
                " output that the data needs, for example 2048"
            )
        return check

    def __call__(self, item: AnnotatedImage, height: int, width: int) -> str | None:
        """height, width: of the item's image, pixels."""
        fault = control_token_fault(item.prompt, self.text.control_tokens)
        if fault is not None:
            return fault
        try:
            image = self._preprocess.image_tokens(height, width)
        except DataError as error:
            return str(error)
        if self.limit is None:
            return None
        room = self.limit - self.new_tokens - image + 1  # the question holds one placeholder of the image
        question = self._question_tokens(item.prompt, room)
        if question <= room:
            return None
        return (
            f"the question must have at most {room} tokens ({self.limit} less {image} of the image and"
            f" {self.new_tokens} of the output), got {question}; shorten the prompt, or raise rollout.max_model_len"
        )

    def _question_tokens(self, prompt: str, room: int) -> int:
        """Tokens of the longest question about a prompt; a bound that fits is not counted out (one encoding a
        prompt instead of one a dimension)."""
        if prompt not in self._lengths:
            bound = (
                self._template
                + _SLACK
                + len(self.text.tokenizer.encode(prompt, add_special_tokens=False, verbose=False))
            )
            if bound > room:
                bound = max(len(self.text.question(prompt, d)) for d in self.text.rubric.dimensions)
                self.text.forget()
            self._lengths[prompt] = bound
        return self._lengths[prompt]
