"""Stable Diffusion 3.x: time is 1000 sigma, guidance is neg + w (pos - neg), two pooled and one long text encoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.models.generators.adapter import Conditions, GeneratorAdapter, shift_of_tokens


class StableDiffusion3Adapter(GeneratorAdapter):
    """`StableDiffusion3Pipeline`."""

    family = "sd3"
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
    def latent_shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return self.transformer.config.in_channels, self.picture.height // scale, self.picture.width // scale

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        texts = list(prompts)
        long, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=self.picture.max_prompt_tokens
        )
        return Conditions({"long": long, "pooled": pooled})

    def velocity(self, latents: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        return self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=sigmas * 1000,
            encoder_hidden_states=conditions.tensors["long"],
            pooled_projections=conditions.tensors["pooled"],
            return_dict=False,
        )[0].float()

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        return negative + scale * (positive - negative)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def _schedule(self, steps: int) -> tuple[list[float] | None, dict]:
        if not self.pipeline.scheduler.config.get("use_dynamic_shifting"):
            return None, {}
        _, rows, columns = self.latent_shape
        patch = self.transformer.config.patch_size
        return None, {"mu": shift_of_tokens(self.pipeline.scheduler, rows // patch * (columns // patch), 1.16)}
