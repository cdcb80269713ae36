"""A CLIP-family scorer: how well an image fits a prompt by the cosine of two embeddings, differentiable with respect to
the pixels. PickScore (arXiv 2305.01569), HPSv2 (arXiv 2306.09341) and CLIP itself, as transformers' CLIPModel.

    [B, 3, H, W] in [0, 1] -> resize (bicubic, antialiased), center crop, (x - mean) / std -> image tower -> e_image
    prompt -> tokenizer -> text tower -> e_text
    cosine = <e_image, e_text> / (|e_image| |e_text|)        logit = exp(logit_scale) cosine

Left out on purpose: scorers with other heads (ImageReward, HPSv3), and gradients with respect to prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zr_ray.config.reward_sources import CLIP_SCORES
from zr_ray.errors import DataError, JudgeError

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers in a processor's `resample`."""


@dataclass(frozen=True)
class ClipPixels:
    """What a CLIP folder's image processor does, differentiable. It differs from the processor's result by the
    processor's rounding of resized pixels to 8 bits, which has no gradient and is left out here."""

    shortest: int | None
    """Pixels of the shorter side after the resize; None: `size` is both sides."""
    size: tuple[int, int]
    """Rows and columns after a resize that does not keep the ratio; unused with `shortest`."""
    crop: tuple[int, int] | None
    """Rows and columns cut out of the middle."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    resample: str
    """torch.nn.functional.interpolate mode."""

    @classmethod
    def load(cls, folder: Path | str) -> ClipPixels:
        """The parameters in the folder's processor configuration. Raises JudgeError for a processor of another kind."""
        from transformers import AutoImageProcessor

        try:
            made = AutoImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise JudgeError(f"{folder} must hold an image processor: {str(error).splitlines()[0]}") from None
        size, resample = dict(made.size or {}), int(made.resample)
        fits = "shortest_edge" in size or {"height", "width"} <= set(size)
        if not (fits and made.do_resize and made.do_rescale and made.do_normalize and resample in _RESAMPLING):
            raise JudgeError(
                f"the image processor of {folder} must resize (bilinear or bicubic), rescale and normalize, got"
                f" {type(made).__name__} with size {size}, resample {resample}; correct preprocessor_config.json"
            )
        if abs(made.rescale_factor * 255 - 1) > 1e-6:
            raise JudgeError(f"the image processor of {folder} must rescale by 1/255, got {made.rescale_factor}")
        crop = (made.crop_size["height"], made.crop_size["width"]) if made.do_center_crop else None
        shortest = size.get("shortest_edge")
        both = (0, 0) if shortest is not None else (size["height"], size["width"])
        return cls(shortest, both, crop, tuple(made.image_mean), tuple(made.image_std), _RESAMPLING[resample])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these parameters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns after the resize."""
        if self.shortest is None:
            return self.size
        short, long = sorted((height, width))
        longer = int(self.shortest * long / short)
        return (self.shortest, longer) if height <= width else (longer, self.shortest)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] as the image tower reads it, differentiable.   images: [B, 3, H, W] float in [0, 1]."""
        size = self.resized(*images.shape[-2:])
        for step in ((images.shape[-2], size[1]), size):
            if step != tuple(images.shape[-2:]):
                # bicubic overshoots at edges; the processor's 8-bit passes, over rows and then over columns, cut it
                # off, so do we
                images = F.interpolate(images, step, mode=self.resample, align_corners=False, antialias=True)
                images = images.clamp(0, 1)
        if self.crop is not None:
            rows, columns = self.crop
            if size[0] < rows or size[1] < columns:
                raise DataError(
                    f"a resized image of {size} pixels is smaller than its crop {self.crop}; correct `size`"
                )
            top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
            images = images[..., top : top + rows, left : left + columns]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


class ClipScorer(nn.Module):
    """Both scores of a folder's CLIPModel; frozen."""

    names = CLIP_SCORES
    differentiable = True

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float32, cut_prompts: bool = False) -> None:
        """cut_prompts: prompts longer than the text tower reads are cut, as published code does.

        Raises: JudgeError if the folder holds no CLIPModel, tokenizer or image processor."""
        super().__init__()
        from transformers import AutoTokenizer, CLIPModel

        self.folder, self.cut_prompts = Path(folder), cut_prompts
        self.pixels = ClipPixels.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        self.longest = self.model.config.text_config.max_position_embeddings
        """Tokens of a prompt, start and end included."""

    def tokens(self, prompt: str) -> int:
        """Tokens of a prompt, start and end included."""
        return len(self.tokenizer(prompt, verbose=False).input_ids)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, 2] scores in the order of `names`, at least float32, differentiable.

        Args: images: [B, 3, H, W] float in [0, 1]. prompts: B."""
        dtype = self.model.logit_scale.dtype
        seen = self.model.get_image_features(pixel_values=self.pixels(images).to(dtype)).pooler_output
        read = self._read(prompts, images.device)
        cosine = F.cosine_similarity(_single(seen), read, dim=-1)
        logit = cosine * self.model.logit_scale.to(cosine).exp()
        return torch.stack([logit, cosine], -1)

    def _read(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """[B, C] text embeddings; each different prompt is read once."""
        different = list(dict.fromkeys(prompts))
        limit = {"truncation": True, "max_length": self.longest} if self.cut_prompts else {}
        tokens = self.tokenizer(different, padding=True, return_tensors="pt", **limit).to(device)
        with torch.no_grad():
            found = self.model.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
        place = {prompt: i for i, prompt in enumerate(different)}
        return _single(found)[[place[prompt] for prompt in prompts]]


def _single(embeddings: Tensor) -> Tensor:
    """At least float32: half precision would round a cosine to three digits."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
