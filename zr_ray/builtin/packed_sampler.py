"""A built-in generator's images about three times faster than through its pipeline: packed captions, compiled blocks,
no idle step.

The pipeline's shifted schedule ends in sigma 0 twice, so its last model call moves nothing; it is left out here where
that is so. Batches have one fixed size, so the blocks compile once. Images equal the pipeline's up to one gray level
(tested).
Left out on purpose: gradients, guidance truncation, sizes other than 64 x 64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zr_ray.builtin.flow_training import tokenize
from zr_ray.builtin.tiny_generator import IMAGE_SIDE
from zr_ray.models.generators.packed import PackedTransformer

MAX_TOKENS = 9
"""Longest prompt of the world with its end token: two objects of three words, "left of"."""


class PackedSampler:
    """Samples from a copy of a pipeline's transformer; the pipeline itself stays as it is."""

    def __init__(self, pipeline, *, batch: int = 16, compiled: bool = True) -> None:
        """batch: images in one model call, padded up to; 16 keeps the blocks in the cache of one CPU core. compiled:
        needs a C++ compiler on CPU."""
        self.pipeline, self.batch = pipeline, batch
        self.packed = (
            PackedTransformer(copy.deepcopy(pipeline.transformer), MAX_TOKENS, tap=0, compiled=compiled)
            .eval()
            .requires_grad_(False)
        )
        self._captions: dict[str, tuple[Tensor, Tensor]] = {}

    def sigmas(self, steps: int) -> list[float]:
        """The pipeline's noise levels for `steps`, from 1 to 0, without the repeated 0."""
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=0.0)
        levels = scheduler.sigmas.tolist()
        return levels[: levels.index(0.0) + 1]

    @torch.no_grad()
    def _caption(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """([B, MAX_TOKENS, width], [B]); a prompt is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._captions]
        if new:
            ids, lengths = tokenize(self.pipeline.tokenizer, new, MAX_TOKENS)
            encoded = self.pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
            self._captions |= {prompt: (encoded[i], lengths[i]) for i, prompt in enumerate(new)}
        rows = [self._captions[prompt] for prompt in prompts]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance_scale: float
    ) -> np.ndarray:
        """Images of N prompts, each from the noise of its own seed.

        Args: guidance_scale: w of pos + w (pos - neg); 0 is sampling without guidance.   Returns: [N, 64, 64, 3]
        uint8."""
        parts = []
        for start in range(0, len(prompts), self.batch):
            part, own = list(prompts[start : start + self.batch]), list(seeds[start : start + self.batch])
            missing = self.batch - len(part)
            made = self._sample([*part, *part[:1] * missing], [*own, *own[:1] * missing], steps, guidance_scale)
            parts.append(made[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)

    def _sample(self, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float) -> np.ndarray:
        shape = (self.packed.transformer.in_channels, IMAGE_SIDE // 4, IMAGE_SIDE // 4)
        latents = torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        )
        wanted, empty = self._caption(prompts), self._caption([""] * len(prompts))
        levels = self.sigmas(steps)
        for sigma, following in zip(levels, levels[1:], strict=False):
            times = torch.full((len(prompts),), 1 - sigma)
            towards = self.packed(latents, times, *wanted)[0]
            if guidance_scale > 0:
                towards = towards + guidance_scale * (towards - self.packed(latents, times, *empty)[0])
            latents = latents - (following - sigma) * towards
        vae = self.pipeline.vae
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
