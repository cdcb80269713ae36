"""A judge on the transformers side: log-probs of sampled outputs and of the score labels, differentiable.

Axes: R rows, L packed tokens a row, T completion tokens, N = sum of completions, K bins, V vocabulary, H hidden
width (`models/packing.py` says how rows are packed).
Left out on purpose: generation; that is the rollout worker's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zr_ray.errors import JudgeError
from zr_ray.models.hub_layout import settle_layout
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import PackedBatch, RowPacker
from zr_ray.models.shortcuts import VisionSizes, take_shortcuts


@dataclass(frozen=True)
class JudgeOutputs:
    """What a forward over packed rows gives; completions padded to a rectangle."""

    logprobs: Tensor
    """[N, T] log-prob of each sampled token over the allowed vocabulary, 0 at padding."""
    mask: Tensor
    """[N, T] bool, True at real tokens."""
    score_logprobs: Tensor
    """[N, K] log-probs of the labels at the score position; uniform -log K where malformed (never to be used)."""
    valid: Tensor
    """[N] bool, False where malformed."""
    score_index: Tensor
    """[N] long position of the score token on the T axis; -1 where malformed."""


class PackedJudge(nn.Module):
    """A Hugging Face VLM with the forward that training needs; the unit DeepSpeed wraps.

    The policy is defined over the allowed vocabulary: forbidden tokens (image, video, special) have probability exactly
    0 in the rollout engine and here, so both normalize over the same set.
    """

    PROJECTION_CHUNK = 4096  # positions projected to the vocabulary at a time; bounds logits memory to 4096 * V

    def __init__(self, model, text: JudgeText) -> None:
        super().__init__()
        self.model = model
        self._sizes = VisionSizes(model)
        self.register_buffer("label_ids", torch.tensor(text.label_ids), persistent=False)
        forbidden = torch.zeros(text.vocab_size, dtype=torch.bool)
        forbidden[list(text.forbidden_ids)] = True
        self.register_buffer("forbidden", forbidden, persistent=False)

    def forward(self, batch: PackedBatch, features=None) -> JudgeOutputs:
        """JudgeOutputs for every completion of the batch; differentiable with respect to the parameters.

        Args: features: what `image_features` of a judge with the same vision tower gave; None computes them here."""
        hidden = self._hidden(batch, self.image_features(batch) if features is None else features)
        token_logprobs, label_logprobs = self._project(hidden.flatten(0, 1)[batch.token_source], batch.token_ids)
        count, width = len(batch.lengths), int(batch.lengths.max())
        mask = torch.arange(width, device=hidden.device)[None] < batch.lengths[:, None]
        logprobs = token_logprobs.new_zeros(count, width).masked_scatter(mask, token_logprobs)
        valid = batch.score_position >= 0
        chosen = label_logprobs[batch.score_position.clamp_min(0)]
        # a malformed output has no score position: uniform keeps what is computed from it finite, `valid` leaves it out
        neutral = torch.full_like(chosen, -float(np.log(chosen.shape[-1])))
        score_index = torch.where(valid, batch.score_position - (batch.lengths.cumsum(0) - batch.lengths), -1)
        return JudgeOutputs(logprobs, mask, torch.where(valid[:, None], chosen, neutral), valid, score_index)

    @property
    def tower_is_frozen(self) -> bool:
        """Whether no parameter of the vision tower is trained."""
        return not any(p.requires_grad for p in self.model.model.visual.parameters())

    def image_features(self, batch: PackedBatch):
        """The vision tower's output for the batch's images, once per image, as the Hugging Face model takes it; the
        packed rows' order."""
        core = self.model.model
        # asked in this order: going through all parameters takes a millisecond
        follow = torch.is_grad_enabled() and (batch.pixel_values.requires_grad or not self.tower_is_frozen)
        sizes = self._sizes(batch.image_grid)
        with torch.set_grad_enabled(follow):
            features = core.get_image_features(batch.pixel_values, batch.image_grid, return_dict=True, **sizes)
        # unrolled rows share an image: its features are computed once and repeated, not the forward
        repeats = batch.image_index.tolist()
        if repeats != list(range(len(features.pooler_output))):
            features.pooler_output = [features.pooler_output[i] for i in repeats]
            if getattr(features, "deepstack_features", None) is not None:
                features.deepstack_features = [[layer[i] for i in repeats] for layer in features.deepstack_features]
        return features

    def _hidden(self, batch: PackedBatch, features) -> Tensor:
        """[R, L, H] last hidden states."""
        core = self.model.model
        output = core(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            mm_encoder_outputs={"image": features},
            use_cache=False,
        )
        return output.last_hidden_state

    def _project(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """([sum T] log-probs of token_ids, [sum T, K] log-probs of the labels), only at the positions needed."""
        if len(hidden) <= self.PROJECTION_CHUNK:
            return self._project_chunk(hidden, token_ids)
        parts = [
            # logits are the largest tensor by far: computed again in the backward pass instead of kept
            checkpoint(self._project_chunk, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(self.PROJECTION_CHUNK), token_ids.split(self.PROJECTION_CHUNK), strict=True)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _project_chunk(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        # float32 before the sum: in bf16 a softmax over the vocabulary loses what the importance ratio is made of
        logits = self.model.lm_head(hidden).float().masked_fill(self.forbidden, -torch.inf)
        total = torch.logsumexp(logits, dim=-1)
        return logits.gather(-1, token_ids[:, None]).squeeze(-1) - total, logits[:, self.label_ids] - total[:, None]


def load_packed_judge(folder: Path, dtype: torch.dtype) -> tuple[PackedJudge, JudgeText, RowPacker]:
    """Load a judge folder for training. Raises JudgeError if it is not an image-text-to-text model."""
    from transformers import AutoModelForImageTextToText

    text = JudgeText(folder)
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    except (ValueError, OSError) as error:
        raise JudgeError(f"{folder} must hold an image-text-to-text model with safetensors weights: {error}") from error
    settle_layout(model)
    take_shortcuts(model)
    return PackedJudge(model, text), text, RowPacker(folder, model)
