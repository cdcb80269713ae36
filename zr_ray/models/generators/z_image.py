"""Z-Image, real and built-in: time is 1 - sigma, the output is negated, guidance is pos + w (pos - neg)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zr_ray.errors import DataError
from zr_ray.models.generators.adapter import Conditions, GeneratorAdapter, shift_of_tokens
from zr_ray.models.generators.packed import PackedTransformer


class ZImageAdapter(GeneratorAdapter):
    """`ZImagePipeline`. A transformer without a rotary axis for captions, as the built-in one, can be packed and
    compiled."""

    family = "z_image"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")
    packed: PackedTransformer | None = None

    def pack(self, compiled: bool) -> bool:
        """As `PackedTransformer`, if captions carry no rotary position: same weights and result, a quarter of the time
        when compiled (40 s, once)."""
        if self.transformer.config.axes_dims[0] == 0:
            self.packed = PackedTransformer(self.transformer, self.picture.max_prompt_tokens, 0, compiled)
        return self.packed is not None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return (
            self.transformer.in_channels,
            2 * (self.picture.height // (2 * scale)),
            2 * (self.picture.width // (2 * scale)),
        )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        most = self.picture.max_prompt_tokens
        rows, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=most + 1
        )
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > most:
                raise DataError(
                    f"a prompt may have {most} tokens, this one has more: {prompt!r:.80}; raise"
                    " generator.max_prompt_tokens"
                )
        captions = torch.zeros(len(rows), most, rows[0].shape[-1], dtype=rows[0].dtype, device=rows[0].device)
        for place, row in zip(captions, rows, strict=True):
            place[: len(row)] = row
        return Conditions(
            {"captions": captions, "lengths": torch.tensor([len(row) for row in rows], device=captions.device)}
        )

    def velocity(self, latents: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        captions, lengths = conditions.tensors["captions"], conditions.tensors["lengths"]
        time = (1 - sigmas).to(self.transformer.dtype)
        x = latents.to(self.transformer.dtype)
        if self.packed is not None:
            return -self.packed(x, time, captions, lengths)[0].float()
        rows = [row[:length] for row, length in zip(captions, lengths.tolist(), strict=True)]
        made = self.transformer(list(x.unsqueeze(2)), time, rows, return_dict=False)[0]
        return -torch.stack([row.float() for row in made]).squeeze(2)

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        return positive + scale * (positive - negative)

    def guided(self, scale: float) -> bool:
        return scale > 0

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        return (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def _schedule(self, steps: int) -> tuple[list[float] | None, dict]:
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        _, rows, columns = self.latent_shape
        return get_default_z_image_sigmas(steps), {
            "mu": shift_of_tokens(self.pipeline.scheduler, rows // 2 * (columns // 2), 1.15)
        }
