"""Qwen-Image: latents packed into tokens of 2 x 2, time is sigma, guidance neg + w (pos - neg) at the length of pos,
token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zr_ray.models.generators.adapter import Conditions, GeneratorAdapter, shift_of_tokens


class QwenImageAdapter(GeneratorAdapter):
    """`QwenImagePipeline`. Latents are [tokens, 4 channels], as its loop carries them; captions are padded and
    masked."""

    family = "qwen_image"
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
        most = self.picture.max_prompt_tokens
        captions, mask = self.pipeline.encode_prompt(list(prompts), max_sequence_length=most)
        mask = torch.ones(captions.shape[:2], device=captions.device) if mask is None else mask
        missing = most - captions.shape[1]
        return Conditions({"captions": F.pad(captions, (0, 0, 0, missing)), "mask": F.pad(mask.bool(), (0, missing))})

    def velocity(self, latents: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        mask = conditions.tensors["mask"]
        longest = int(mask.sum(1).max())  # masked columns at the end change nothing and cost time
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(latents),), self.embedded_guidance or 1.0, device=latents.device)
        return self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=sigmas.to(self.transformer.dtype),
            guidance=guidance,
            encoder_hidden_states=conditions.tensors["captions"][:, :longest],
            encoder_hidden_states_mask=mask[:, :longest],
            img_shapes=[[(1, *self._grid)]] * len(latents),
            return_dict=False,
        )[0].float()

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        combined = negative + scale * (positive - negative)
        return combined * (positive.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def decode(self, latents: Tensor) -> Tensor:
        vae, size = self.pipeline.vae, (self.picture.height, self.picture.width)
        unpacked = self.pipeline._unpack_latents(latents, *size, self.pipeline.vae_scale_factor).to(vae.dtype)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(unpacked)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        made = vae.decode(unpacked * std + mean, return_dict=False)[0][:, :, 0]
        return (made.float() / 2 + 0.5).clamp(0, 1)

    def _schedule(self, steps: int) -> tuple[list[float] | None, dict]:
        return np.linspace(1.0, 1 / steps, steps), {
            "mu": shift_of_tokens(self.pipeline.scheduler, self.latent_shape[0], 1.15)
        }
