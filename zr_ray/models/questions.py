"""The direct questions of one image in several dimensions as one packed row: what they share is computed once.

The questions of an image differ near their end only. Their longest common token prefix, found from the token ids
whatever the chat template, holds image and prompt; the rest of each question is a branch behind it under the tree mask
of `packing.py`, at the positions it would have alone. The result equals separate questions. Where the image is not in
the prefix (a template that names the dimension first), or for a recurrent model, every question is a sequence of its
own and only the image features are shared.
Left out on purpose: reasoning; a packed row asks for the score token alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zr_ray.data import encoded
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import PackedBatch, RotaryPositions, expand_image, has_recurrent_layers, tree_mask
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.records import AnyImage

CACHED_LAYOUTS = 16384
"""Question layouts kept in memory, about 5 kB each with a hundred tokens; a service sees the same prompts again and
again."""


@dataclass(frozen=True)
class QuestionRow:
    """One image to be judged directly in some dimensions; what a learner trains a student on."""

    image: AnyImage
    """[H, W, 3] uint8, or a file that is decoded when the row is packed."""
    prompt: str
    dimensions: tuple[str, ...]
    """D' >= 1 of the judge's dimensions, in any order."""


@dataclass(frozen=True)
class PackedSequence:
    """One packed sequence of a layout."""

    ids: Tensor
    """[L] long, the image placeholder expanded."""
    positions: Tensor
    """[L, 3] long multimodal rotary positions."""
    branch: Tensor
    """[L] long, 0 prefix, 1.. questions."""
    ends: Tensor
    """[questions] long, index of the last token of each question; its prediction is the score."""


class QuestionPacker:
    """Packs direct questions for `PackedJudge`. Has the verbs of `RowPacker`, for rows of the other kind."""

    def __init__(self, model, text: JudgeText, preprocess: PixelPreprocessor) -> None:
        """model: the Hugging Face model; only its configuration and its rule for rotary positions are used."""
        self.text, self.preprocess = text, preprocess
        self.image_token_id = model.config.image_token_id
        self.branching = not has_recurrent_layers(model.config.get_text_config())
        self._layout = lru_cache(CACHED_LAYOUTS)(self._make_layout)
        self._positions = RotaryPositions(model)

    # ---- one image ----

    def layout(self, prompt: str, dimensions: tuple[str, ...], grid: tuple[int, int]) -> tuple[PackedSequence, ...]:
        """One sequence with a branch per dimension, or (unrolled) one sequence per dimension, in the order of
        `dimensions`.

        Args: grid: rows and columns of patches of the image."""
        return self._layout(prompt, dimensions, grid, self.branching)

    def forget(self) -> None:
        """Drop cached layouts and questions: a service sees prompts without end, each cached one is some kilobytes."""
        self._layout.cache_clear()
        self.text.forget()

    def _make_layout(
        self, prompt: str, dimensions: tuple[str, ...], grid: tuple[int, int], branching: bool
    ) -> tuple[PackedSequence, ...]:
        if not dimensions:
            raise ValueError(f"dimensions must name at least one of {self.text.rubric.dimensions}, got none")
        image_tokens = grid[0] * grid[1] // self.preprocess.merge_size**2
        texts = [self.text.question(prompt, d, direct=True) for d in dimensions]
        questions = [expand_image(text, self.image_token_id, image_tokens).astype(np.int64) for text in texts]
        shared = common_prefix(questions)
        image_at = int(np.flatnonzero(questions[0] == self.image_token_id)[0])
        if branching and shared >= image_at + image_tokens:
            return (self._branches(questions, shared, image_at, grid),)
        return tuple(
            self._branches([q], len(q) - 1, int(np.flatnonzero(q == self.image_token_id)[0]), grid) for q in questions
        )

    def _branches(
        self, questions: list[np.ndarray], shared: int, image_at: int, grid: tuple[int, int]
    ) -> PackedSequence:
        prefix_positions = self._positions(shared, image_at, grid)
        following = int(prefix_positions.max()) + 1
        tails = [torch.from_numpy(q[shared:]) for q in questions]
        ids = torch.cat([torch.from_numpy(questions[0][:shared]), *tails])
        own = [(following + torch.arange(len(tail)))[:, None].expand(-1, 3) for tail in tails]
        branch = [torch.full((len(tail),), n) for n, tail in enumerate(tails, start=1)]
        ends = shared - 1 + torch.tensor([len(tail) for tail in tails]).cumsum(0)
        return PackedSequence(
            ids, torch.cat([prefix_positions, *own]), torch.cat([torch.zeros(shared, dtype=torch.long), *branch]), ends
        )

    # ---- batches ----

    def batch(
        self, pixel_values: Tensor, image_grid: Tensor, layouts: Sequence[tuple[PackedSequence, ...]]
    ) -> PackedBatch:
        """Tensors of B images with their layouts; scores come out image by image, dimensions in the layout's order."""
        sequences = [s for layout in layouts for s in layout]
        ids = pad_sequence([s.ids for s in sequences], batch_first=True)
        branch = pad_sequence([s.branch for s in sequences], batch_first=True, padding_value=-1)
        count, width = ids.shape
        counts = torch.tensor([len(s.ends) for s in sequences])
        ends = torch.cat([s.ends for s in sequences]) + torch.repeat_interleave(torch.arange(count) * width, counts)
        total = len(ends)
        packed = PackedBatch(
            input_ids=ids,
            position_ids=pad_sequence([s.positions for s in sequences], batch_first=True).permute(2, 0, 1).contiguous(),
            attention_mask=tree_mask(branch) if self.branching else (branch >= 0).long(),
            pixel_values=pixel_values,
            image_grid=image_grid,
            image_index=torch.repeat_interleave(
                torch.arange(len(layouts)), torch.tensor([len(layout) for layout in layouts])
            ),
            token_source=ends,
            token_ids=torch.full((total,), self.text.label_ids[0]),
            lengths=torch.ones(total, dtype=torch.long),
            score_position=torch.arange(total),
        )
        return packed.to(pixel_values.device)

    def pack(self, rows: Sequence[QuestionRow]) -> PackedBatch:
        """Tensors of rows whose images have any sizes, each with its own dimensions."""
        pixel_values, grid = self.preprocess.patches_of([encoded.pixels(row.image) for row in rows])
        return self.batch(pixel_values, grid, [self._layout_of(row) for row in rows])

    # ---- sizes, for micro-batching ----

    def image_tokens(self, image: AnyImage) -> int:
        """Tokens of the language model that an image becomes."""
        return self.preprocess.image_tokens(*encoded.size(image))

    def length(self, row: QuestionRow, image_tokens: int) -> int:
        """Tokens of the longest sequence that `row` becomes."""
        return max(len(s.ids) for s in self._layout_of(row))

    def sequences(self, row: QuestionRow) -> int:
        """Sequences that `row` becomes: rows of the packed rectangle."""
        return len(self._layout_of(row))

    def _layout_of(self, row: QuestionRow) -> tuple[PackedSequence, ...]:
        return self.layout(row.prompt, row.dimensions, self.preprocess.grid(*encoded.size(row.image)))


def common_prefix(questions: Sequence[np.ndarray]) -> int:
    """Length of the longest token prefix that all questions share; at least one token short of each, so that every
    branch has one."""
    shortest = min(map(len, questions)) - 1
    heads = np.stack([q[:shortest] for q in questions])
    different = np.flatnonzero((heads != heads[0]).any(axis=0))
    return int(different[0]) if len(different) else shortest
