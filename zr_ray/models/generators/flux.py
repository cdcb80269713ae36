"""FLUX.1: latents packed into tokens of 2 x 2, time is sigma, distilled guidance as an input; without distillation neg
+ w (pos - neg)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from zr_ray.models.generators.adapter import Conditions, GeneratorAdapter, shift_of_tokens


class FluxAdapter(GeneratorAdapter):
    """`FluxPipeline`. Latents are [tokens, 4 channels], as its loop carries them."""

    family = "flux"
    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )

    @property
    def _grid(self) -> tuple[int, int]:
        scale = 2 * self.pipeline.vae_scale_factor
        return self.picture.height // scale, self.picture.width // scale

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self._grid
        return rows * columns, self.transformer.config.in_channels

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        texts = list(prompts)
        long, pooled, _ = self.pipeline.encode_prompt(texts, texts, max_sequence_length=self.picture.max_prompt_tokens)
        return Conditions({"long": long, "pooled": pooled})

    def velocity(self, latents: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        long, dtype = conditions.tensors["long"], self.transformer.dtype
        guidance = None
        if self.transformer.config.guidance_embeds:
            scale = 3.5 if self.embedded_guidance is None else self.embedded_guidance  # the pipeline's own default
            guidance = torch.full((len(latents),), scale, device=latents.device)
        return self.transformer(
            hidden_states=latents.to(dtype),
            timestep=sigmas.to(dtype),
            guidance=guidance,
            pooled_projections=conditions.tensors["pooled"],
            encoder_hidden_states=long,
            txt_ids=torch.zeros(long.shape[1], 3, device=latents.device, dtype=dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(1, *self._grid, latents.device, dtype),
            return_dict=False,
        )[0].float()

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        return negative + scale * (positive - negative)

    def decode(self, latents: Tensor) -> Tensor:
        vae, size = self.pipeline.vae, (self.picture.height, self.picture.width)
        unpacked = self.pipeline._unpack_latents(latents, *size, self.pipeline.vae_scale_factor)
        scaled = unpacked.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def _schedule(self, steps: int) -> tuple[list[float] | None, dict]:
        return np.linspace(1.0, 1 / steps, steps), {
            "mu": shift_of_tokens(self.pipeline.scheduler, self.latent_shape[0], 1.15)
        }
