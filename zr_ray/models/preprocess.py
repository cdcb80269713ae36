"""Differentiable preprocessing: float pixels to the patches a Qwen-VL vision tower reads, in torch from end to end.

    [B, 3, H, W] in [0, 1] -> resize (bicubic, antialiased) -> (x - mean) / std -> patches in merge-block order, each
    still frame repeated

Training, serving and gradients use this one implementation. On uint8 images it equals the Hugging Face processor's
result within TOLERANCE; the difference is the processor's rounding of resized pixels to 8 bits, which has no gradient
and is left out here.
Left out on purpose: video, and batches of images of different sizes (group them by size; `patches_of` does).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zr_ray.errors import DataError, JudgeError

TOLERANCE = {"untouched": 1e-6, "resized": 1.5}
"""Largest difference from the Hugging Face processor, both of its backends: patch values (std units) when no resize is
needed; levels of 1/255 per pixel otherwise (measured: largest 1.08, mean 0.3): the processor rounds to 8 bits after
each of its two passes."""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers in a processor's `resample`."""


@dataclass(frozen=True)
class PixelPreprocessor:
    """What a judge folder's image processor does, differentiable. Build it with `load`."""

    patch_size: int
    """Pixels of a patch side."""
    merge_size: int
    """Patches of a visual token's side; sides of a resized image are multiples of patch_size * merge_size."""
    temporal_patch_size: int
    """Copies of a still frame in each patch."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    min_pixels: int
    max_pixels: int
    """Bounds of a resized image's area."""
    resample: str
    """torch.nn.functional.interpolate mode."""

    @classmethod
    def load(cls, folder: Path | str) -> PixelPreprocessor:
        """The parameters in the folder's processor configuration. Raises JudgeError for a processor of another kind."""
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(folder)
        names = (
            "patch_size",
            "merge_size",
            "temporal_patch_size",
            "image_mean",
            "image_std",
            "size",
            "resample",
            "rescale_factor",
        )
        missing = [name for name in names if getattr(processor, name, None) is None]
        area = None if missing else (processor.size["shortest_edge"], processor.size["longest_edge"])
        if missing or None in area:
            kind = f"{type(processor).__name__} has no {missing or 'pixel bounds'}"
            raise JudgeError(
                f"the image processor of {folder} must be of the Qwen-VL kind, {kind}; use a Qwen-VL judge"
            )
        if (
            not (processor.do_resize and processor.do_rescale and processor.do_normalize)
            or abs(processor.rescale_factor * 255 - 1) > 1e-6
        ):
            raise JudgeError(
                f"the image processor of {folder} must resize, rescale by 1/255 and normalize; correct its"
                " configuration"
            )
        if int(processor.resample) not in _RESAMPLING:
            raise JudgeError(
                f"the image processor of {folder} must resample with {_RESAMPLING}, got {processor.resample}"
            )
        return cls(
            patch_size=processor.patch_size,
            merge_size=processor.merge_size,
            temporal_patch_size=processor.temporal_patch_size,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            min_pixels=area[0],
            max_pixels=area[1],
            resample=_RESAMPLING[int(processor.resample)],
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these parameters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels after the resize. Raises DataError for a side ratio above 200, as the processor
        does."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        try:
            return smart_resize(height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)
        except (ValueError, ZeroDivisionError):
            raise DataError(
                f"an image must have sides above 0 and of a ratio below 200, got {width} x {height} pixels; crop it"
            ) from None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size."""
        rows, columns = self.resized(height, width)
        return rows // self.patch_size, columns // self.patch_size

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens of the language model that an image of this size becomes."""
        rows, columns = self.grid(height, width)
        return rows * columns // self.merge_size**2

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of images of one size, differentiable with respect to the pixels.

        Args: images: [B, 3, H, W] float in [0, 1].
        Returns: (patches [B * rows * columns, 3 * temporal_patch_size * patch_size^2], grid [B, 3] long (1, rows,
        columns) in patches).
        Raises: DataError if it is no float tensor of that shape, or the sides' ratio is above 200."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}"
            raise DataError(f"images must be a float tensor [B, 3, H, W] in [0, 1], got {got}; divide bytes by 255")
        height, width = self.resized(*images.shape[-2:])
        for size in ((images.shape[-2], width), (height, width)):
            if size != tuple(images.shape[-2:]):
                # bicubic overshoots at edges; the processor's 8-bit passes, over rows and then over columns, cut it
                # off, so do we
                images = F.interpolate(images, size, mode=self.resample, align_corners=False, antialias=True).clamp(
                    0, 1
                )
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self._patchify((images - mean) / std)

    def _patchify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        count, channels, height, width = images.shape
        p, m = self.patch_size, self.merge_size
        rows, columns = height // p, width // p
        blocks = images.reshape(count, channels, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        frames = blocks.unsqueeze(6).expand(*blocks.shape[:6], self.temporal_patch_size, p, p)
        grid = torch.tensor([[1, rows, columns]], device=images.device).expand(count, 3)
        return frames.reshape(count * rows * columns, -1), grid

    def patches_of(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(patches [sum, C] float32, grid [images, 3]) of [H, W, 3] uint8 arrays of any sizes, in order."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(i)
        patches: list[Tensor] = [torch.empty(0)] * len(images)
        grids: list[Tensor] = [torch.empty(0)] * len(images)
        for members in by_size.values():
            stacked = torch.from_numpy(np.stack([images[i] for i in members])).permute(0, 3, 1, 2).float() / 255
            made, grid = self(stacked)
            for i, own in zip(members, made.chunk(len(members)), strict=True):
                patches[i], grids[i] = own, grid[:1]
        return torch.cat(patches), torch.cat(grids)
