"""Cheaper ways through Qwen3-VL's modules, with the same results.

A forward of four images of 64 pixels spends more time between operations than in them. What can be had without other
kernels:
- the vision tower takes what it computes of image sizes alone ready-made (transformers' `vision_utils`), so it is
  computed once per size instead of once per image and forward;
- its attention over images of one size is one call instead of one an image;
- its patch embedding, a convolution whose stride is its kernel, is a matrix product: an eighth of the time for 256
  patches of 8 pixels on one core;
- root-mean-square norms are one operation in float32.
Scores are those of the modules as they come, the norms to the last bit (tests/models/test_shortcuts.py). Weights keep
their names and places, so checkpoints, ZeRO and engines do not notice.
Left out on purpose: towers with windows (Qwen2.5-VL) and others; they are asked as they are. Compiling: a reward
replica would start a minute later.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

ATTENTION = "sdpa_of_equal_images"
KINDS = ("qwen3_vl",)
"""model_type of the judges whose tower is known to take what is given here."""
CACHED_SIZES = 64
"""Image sizes kept; 64 bytes a patch, so a megapixel image with patches of 16 pixels is a quarter of a megabyte."""


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs) -> tuple:
    """Scaled dot-product attention inside each image.

    Args: query, key, value: [1, heads, images * patches, width]. equal_images (keyword): number of images, all of one
        size; absent: the tensors hold one image.
    Returns: ([1, images * patches, heads, width], None)."""
    count = kwargs.pop("equal_images", None)
    if count is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    heads, width = query.shape[1], query.shape[3]
    apart = (tensor.view(heads, count, -1, width).transpose(0, 1) for tensor in (query, key, value))
    attended, weights = sdpa_attention_forward(module, *apart, attention_mask, **kwargs)
    return attended.reshape(1, -1, heads, width), weights


AttentionInterface.register(ATTENTION, attention)


class Patches(nn.Conv3d):
    """A convolution over patches that are exactly one kernel large."""

    def forward(self, patches: Tensor) -> Tensor:
        """[N, out, 1, 1, 1] of [N, channels, frames, side, side]."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


class Norm(Qwen3VLTextRMSNorm):
    """Other types than float32 are rounded in between, as they come."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)
        return super().forward(hidden_states)


def take_shortcuts(model: Any) -> None:
    """Let a Hugging Face model that is known compute the cheaper way; leaves others as they are."""
    if getattr(model.config, "model_type", None) not in KINDS:
        return
    tower = model.model.visual
    tower.config._attn_implementation = ATTENTION
    # a class is exchanged, not a module: parameters keep their names, and hooks on the module still run
    tower.patch_embed.proj.__class__ = Patches
    for module in model.modules():
        if type(module) is Qwen3VLTextRMSNorm:
            module.__class__ = Norm


class VisionSizes:
    """Ready-made tensors for one tower."""

    def __init__(self, model: Any) -> None:
        """model: the Hugging Face model."""
        tower = getattr(model.model, "visual", None)
        taken = tower is not None and tower.config._attn_implementation == ATTENTION
        self._tower: Any = tower if taken else None
        self._known = lru_cache(CACHED_SIZES)(self._ask)

    def __call__(self, grid: Tensor) -> dict[str, Any]:
        """Keywords for `get_image_features`; empty without `take_shortcuts`.   grid: [images, 3] long (t, h, w) in
        patches."""
        if self._tower is None:
            return {}
        sizes = [tuple(size) for size in grid.tolist()]
        each = [self._known(size) for size in sizes] if len(set(sizes)) > 1 else [self._known(sizes[0])] * len(sizes)
        names = ("interp_indices", "interp_weights", "position_ids")
        made: dict[str, Any] = {
            name: torch.cat([one[i] for one in each]).to(grid.device) for i, name in enumerate(names)
        }
        if len(set(sizes)) == 1 and sizes[0][0] == 1:
            patches = len(made["position_ids"])
            made |= {"cu_seqlens": torch.tensor([0, patches], dtype=torch.int32), "equal_images": len(sizes)}
            made["cu_seqlens"] = made["cu_seqlens"].to(grid.device)
        return made

    def _ask(self, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

        tower, grid = self._tower, torch.tensor([size])
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.config.spatial_merge_size,
        )
        return indices, weights, get_vision_position_ids(grid, tower.spatial_merge_size)
