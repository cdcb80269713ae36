"""Dense perception supervision for the tiny judge's vision tower: throw-away heads on its merged visual tokens.

Next-token training alone leaves a tower of this size near chance; told per position what stands there, it sees within
minutes.
Axes: B images, V merged visual tokens (row-major cells of one grid, 4 x 4 or finer), H = 128 text width.
Left out on purpose: the language model; nothing of the heads reaches the judge folder.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from zr_ray.world import CELL_CLASSES, IMAGE_CLASSES, LEVEL_NAMES
from zr_ray.world.reasoning import LEVEL_EDGES

IMAGE_WEIGHT = 2.0
"""Weight of an image-level target against a per-cell one: there are many cells but one image."""
LEVEL_WEIGHT = 20.0
"""Weight of the squared error of degradation levels (levels lie in [0, 1], their variance is about 0.1)."""


def patch_pixels(images: np.ndarray, patch: int = 8, merge: int = 2) -> Tensor:
    """[B, 64, 64, 3] uint8 -> [B, (64 / patch)^2, 3 patch^2] float in [-1, 1]: the processor's order, without its
    temporal copy."""
    scaled = torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1
    blocks = images.shape[1] // (patch * merge)
    parts = scaled.reshape(-1, blocks, merge, patch, blocks, merge, patch, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return parts.reshape(len(images), (blocks * merge) ** 2, 3 * patch * patch)


def tower_features(visual: Qwen3VLVisionModel, patches: Tensor) -> tuple[Tensor, Tensor | None]:
    """The tower's own computation for B images of one size, batched (transformers loops over images).

    Args: patches: [B, N, 3 patch^2] of square images from `patch_pixels`.
    Returns: (merged [B, V, H], deepstack tap [B, V, H] or None in a tower without one)."""
    count, length, _ = patches.shape
    side, merged = round(length**0.5), visual.spatial_merge_size**2
    grid = torch.tensor([[1, side, side]])
    at, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.spatial_merge_size,
    )
    projection = visual.patch_embed.proj
    x = F.linear(
        patches, projection.weight.sum(2).flatten(1), projection.bias
    )  # both frames of a still image are the same
    x = x + (visual.pos_embed(at) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(x, get_vision_position_ids(grid, visual.spatial_merge_size))
    tap = None
    for number, block in enumerate(visual.blocks):
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).reshape(count * length, 3, attention.num_heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos.repeat(count, 1), sin.repeat(count, 1))
        q, k, v = (t.reshape(count, length, attention.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, -1)
        x = x + attention.proj(mixed)
        x = x + block.mlp(block.norm2(x))
        if number in visual.deepstack_visual_indexes:
            tap = visual.deepstack_merger_list[0](x.reshape(count * length, -1)).reshape(count, length // merged, -1)
    return visual.merger(x.reshape(count * length, -1)).reshape(count, length // merged, -1), tap


def as_encoder_output(merged: Tensor, tap: Tensor | None) -> dict[str, BaseModelOutputWithPooling]:
    """What `Qwen3VLForConditionalGeneration(mm_encoder_outputs=...)` takes instead of pixels. merged, tap: [rows, V,
    H]."""
    taps = [] if tap is None else [list(tap)]
    features = BaseModelOutputWithDeepstackFeatures(pooler_output=list(merged), deepstack_features=taps)
    return {"image": features}


class PerceptionHeads(nn.Module):
    """Linear read-outs of `perception_targets` from visual tokens; two sets, one for the merged tokens and one for the
    tap."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.ModuleList(nn.Linear(width, sum(CELL_CLASSES.values())) for _ in range(2))
        outputs = sum(IMAGE_CLASSES.values()) + len(LEVEL_NAMES) * (1 + 2 + len(LEVEL_EDGES))
        self.image = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs)) for _ in range(2))

    def forward(
        self, merged: Tensor, tap: Tensor | None, targets: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, accuracies on the merged tokens). Cell accuracies are over cells that hold an object; level words are
        exact."""
        total, accuracies = 0.0, {}
        for which, (tokens, weight) in enumerate(((tap, 0.3), (merged, 1.0))):
            if tokens is not None:
                loss, accuracies = self._read(tokens, targets, which)
                total = total + weight * loss
        return total, accuracies

    def image_readings(self, merged: Tensor) -> tuple[Tensor, Tensor]:
        """(degradation levels [B, L], probability that any object is seen [B]) as read from the merged tokens."""
        levels = len(LEVEL_NAMES)
        sizes = [*IMAGE_CLASSES.values(), levels, levels * (2 + len(LEVEL_EDGES))]
        read = dict(
            zip([*IMAGE_CLASSES, "levels", "words"], self.image[1](merged.mean(1)).split(sizes, -1), strict=True)
        )
        return read["levels"], 1 - read["objects"].softmax(-1)[:, 0]

    def _read(self, tokens: Tensor, targets: dict[str, Tensor], which: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, accuracies = 0.0, {}
        occupied = targets["presence"] > 0
        for (name, _), logits in zip(
            CELL_CLASSES.items(), self.cell[which](tokens).split(list(CELL_CLASSES.values()), -1), strict=True
        ):
            # empty cells teach presence; the other attributes are learned where there is something to see
            weights = (
                torch.ones_like(targets["presence"], dtype=torch.float32)
                if name == "presence"
                else 0.1 + 0.9 * occupied.float()
            )
            errors = F.cross_entropy(logits.flatten(0, 1), targets[name].flatten(), reduction="none")
            loss = loss + (errors * weights.flatten()).sum() / weights.sum()
            accuracies[name] = (logits.argmax(-1) == targets[name])[occupied].float().mean()
        levels = len(LEVEL_NAMES)
        words = 2 + len(LEVEL_EDGES)
        read = self.image[which](tokens.mean(1)).split([*IMAGE_CLASSES.values(), levels, levels * words], -1)
        for name, logits in zip(IMAGE_CLASSES, read[:-2], strict=True):
            loss = loss + IMAGE_WEIGHT * F.cross_entropy(logits, targets[name])
            accuracies[name] = (logits.argmax(-1) == targets[name]).float().mean()
        loss = loss + LEVEL_WEIGHT * F.mse_loss(read[-2], targets["levels"])
        level_words = level_classes(targets["levels"])
        logits = read[-1].unflatten(-1, (levels, words))
        loss = loss + IMAGE_WEIGHT * F.cross_entropy(logits.flatten(0, 1), level_words.flatten()) * levels / 2
        for i, name in enumerate(LEVEL_NAMES):
            accuracies[name] = (logits[:, i].argmax(-1) == level_words[:, i]).float().mean()
        return loss, accuracies


def level_classes(levels: Tensor) -> Tensor:
    """[..., L] level words as classes: 0 none, 1 low, 2 mid, 3 high."""
    return (levels > 0).long() * (1 + sum((levels >= edge).long() for edge in LEVEL_EDGES))
