"""Questions and their sampled completions, packed for one forward pass.

Axes: R rows (one image and question each), G completions a row, L packed tokens a row, P prompt tokens, T completion
tokens,
N = sum of completions.

One row holds the prompt once and its G completions behind it; a tree mask lets completion i see the prompt and itself
only, and its positions continue the prompt's. So image and prompt are computed once for G samples, and the result
equals G separate sequences (tested to 1e-5). Models with recurrent (linear-attention) layers cannot branch; for them a
row is unrolled into G sequences that share one computation of the image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.data import encoded
from zr_ray.records import AnyImage


@dataclass(frozen=True)
class Row:
    """One question with its sampled completions, ready for a forward pass."""

    question: np.ndarray
    """[P] int32 with one image placeholder."""
    image: AnyImage
    """[H, W, 3] uint8, or a file that is decoded when the row is packed."""
    completions: tuple[np.ndarray, ...]
    """G arrays of [T_i] int32, T_i >= 1."""
    score_indices: tuple[int | None, ...]
    """Per completion the position of its score token; None when malformed."""


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of R packed rows."""

    input_ids: Tensor
    """[R, L] long, padded with 0."""
    position_ids: Tensor
    """[3, R, L] long multimodal rotary positions."""
    attention_mask: Tensor
    """[R, 1, L, L] bool tree mask (True = may attend), or [R, L] long for unrolled rows."""
    pixel_values: Tensor
    image_grid: Tensor
    """[images, 3] long (t, h, w) in patches."""
    image_index: Tensor
    """[R] long: image of each row; several unrolled rows share one."""
    token_source: Tensor
    """[sum T] long index into the flattened [R * L] hidden states whose prediction is each completion token."""
    token_ids: Tensor
    """[sum T] long the completion tokens, completion after completion."""
    lengths: Tensor
    """[N] long T_i."""
    score_position: Tensor
    """[N] long index into the sum-T axis of each completion's score token; -1 when malformed."""

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**{name: value.to(device) for name, value in self.__dict__.items()})


class RowPacker:
    """Builds PackedBatch from rows with the judge's own image processor and rotary positions. No weights needed beyond
    the config."""

    def __init__(self, folder: Path, model) -> None:
        from transformers import AutoImageProcessor

        self.image_processor = AutoImageProcessor.from_pretrained(folder)
        self.image_token_id = model.config.image_token_id
        self.merge = model.config.vision_config.spatial_merge_size
        self.branching = not has_recurrent_layers(model.config.get_text_config())
        self._positions = RotaryPositions(model)

    def pixels(self, images: Sequence[AnyImage]) -> tuple[Tensor, Tensor]:
        """(pixel_values [patches, C], grid [images, 3]) of uint8 RGB images."""
        arrays = [np.ascontiguousarray(encoded.pixels(i)) for i in images]
        features = self.image_processor(images=arrays, return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def length(self, row: Row, image_tokens: int) -> int:
        """Tokens of the longest sequence that `row` becomes, for micro-batching by tokens."""
        prompt = len(row.question) - 1 + image_tokens  # the placeholder is replaced
        bodies = [len(c) - 1 for c in row.completions]  # the last token predicts nothing and is not fed
        return prompt + (sum(bodies) if self.branching else max(bodies))

    def sequences(self, row: Row) -> int:
        """Sequences that `row` becomes: rows of the packed rectangle."""
        return 1 if self.branching else len(row.completions)

    def image_tokens(self, image: AnyImage) -> int:
        """Number of language-model tokens the processor makes of an image."""
        patches = self.image_processor.get_number_of_image_patches(*encoded.size(image), {})
        return int(patches) // self.merge**2

    def pack(self, rows: Sequence[Row]) -> PackedBatch:
        """Pack rows into one rectangle; see the module's first lines for the layout."""
        pixel_values, grid = self.pixels([row.image for row in rows])
        tokens_per_image = (grid.prod(-1) // self.merge**2).tolist()
        # (image, prompt, indices of the completions that branch from it)
        sequences: list[tuple[int, np.ndarray, list[int]]] = []
        completions = [c for row in rows for c in row.completions]
        first = 0
        for image, row in enumerate(rows):
            prompt = expand_image(row.question, self.image_token_id, tokens_per_image[image])
            own = list(range(first, first + len(row.completions)))
            sequences += [(image, prompt, own)] if self.branching else [(image, prompt, [i]) for i in own]
            first += len(own)
        width = max(len(p) + sum(len(completions[i]) - 1 for i in own) for _, p, own in sequences)
        count = len(sequences)
        ids = np.zeros((count, width), np.int64)
        positions = np.zeros((3, count, width), np.int64)
        branch = np.full((count, width), -1, np.int64)  # -1 padding, 0 prompt, 1.. completions
        sources: list[np.ndarray] = [np.empty(0, np.int64)] * len(completions)
        for r, (image, prompt, own) in enumerate(sequences):
            length, image_at = len(prompt), int((prompt == self.image_token_id).argmax())
            rope = self._positions(length, image_at, tuple(grid[image, 1:].tolist())).T
            ids[r, :length], branch[r, :length], positions[:, r, :length] = prompt, 0, rope
            # an image takes fewer positions than tokens, so text goes on after the largest position, not the length
            next_position, cursor = int(rope.max()) + 1, length
            for b, i in enumerate(own, start=1):
                end = cursor + len(completions[i]) - 1
                ids[r, cursor:end], branch[r, cursor:end] = completions[i][:-1], b
                # every branch starts at the same position: none of them knows of the others
                positions[:, r, cursor:end] = np.arange(next_position, next_position + end - cursor)
                # the prompt's last token predicts each completion's first one
                sources[i] = r * width + np.array([length - 1, *range(cursor, end)])
                cursor = end
        lengths = torch.tensor([len(c) for c in completions])
        starts = torch.cumsum(lengths, 0) - lengths
        score_indices = [s for row in rows for s in row.score_indices]
        return PackedBatch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions),
            attention_mask=(
                tree_mask(torch.from_numpy(branch)) if self.branching else torch.from_numpy(branch >= 0).long()
            ),
            pixel_values=pixel_values,
            image_grid=grid,
            image_index=torch.tensor([image for image, _, _ in sequences]),
            token_source=torch.from_numpy(np.concatenate(sources)),
            token_ids=torch.from_numpy(np.concatenate(completions).astype(np.int64)),
            lengths=lengths,
            score_position=torch.tensor([-1 if s is None else int(starts[i]) + s for i, s in enumerate(score_indices)]),
        )


class RotaryPositions:
    """The model's own positions of a text with one image in it. They do not depend on the words, so each layout is
    asked for once."""

    def __init__(self, model) -> None:
        self._rope_index, self._merge = model.model.get_rope_index, model.config.vision_config.spatial_merge_size
        self._known = lru_cache(1024)(self._ask)  # per instance: a decorated method would keep the model alive

    def __call__(self, length: int, image_at: int, grid: tuple[int, int]) -> Tensor:
        """[length, 3] long (t, h, w). Args: image_at: index of the first image token. grid: rows and columns of
        patches."""
        return self._known(length, image_at, grid)

    def _ask(self, length: int, image_at: int, grid: tuple[int, int]) -> Tensor:
        types = torch.zeros(1, length, dtype=torch.int32)
        # get_rope_index only asks which tokens are image tokens, whatever their ids
        types[0, image_at : image_at + grid[0] * grid[1] // self._merge**2] = 1
        positions, _ = self._rope_index(
            types.long(), mm_token_type_ids=types, image_grid_thw=torch.tensor([[1, *grid]])
        )
        return positions[:, 0].T.contiguous()


def expand_image(question: np.ndarray, image_token_id: int, image_tokens: int) -> np.ndarray:
    """The question with its one placeholder repeated `image_tokens` times."""
    at = int(np.flatnonzero(question == image_token_id)[0])
    return np.concatenate([question[:at], np.full(image_tokens, image_token_id, question.dtype), question[at + 1 :]])


def tree_mask(branch: Tensor) -> Tensor:
    """[R, 1, L, L] bool: causal, and query branch = key branch or key is prompt; padding sees itself only (keeps
    softmax finite)."""
    width = branch.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    query, key = branch[:, :, None], branch[:, None, :]
    allowed = causal & (key >= 0) & (query >= 0) & ((query == key) | (key == 0))
    return (allowed | torch.eye(width, dtype=torch.bool)).unsqueeze(1)


def has_recurrent_layers(text_config) -> bool:
    return any("linear" in kind or "recurrent" in kind for kind in getattr(text_config, "layer_types", None) or [])
