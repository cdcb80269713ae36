"""A fast equal of diffusers' Z-Image transformer for one image size and captions without a rotary axis.

Left out on purpose: several image sizes in a batch; image conditions; activation checkpointing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD_TO = 32
"""Z-Image pads a caption to a multiple of this many tokens, all with one learned vector."""


class RealRotaryAttention:
    """Attention of diffusers' Z-Image blocks with the rotary embedding as real numbers, which compiles; same result.

    `freqs_cis` is [B or 1, S, head/2, 2] cosine and sine, `attention_mask` an additive [B, 1, 1, S] or None."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, freqs_cis=None):
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        def rotate(x: Tensor) -> Tensor:
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            cos, sin = freqs_cis[:, :, None].unbind(-1)
            return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)

        query, key = (
            rotate(attn.norm_q(split(attn.to_q(hidden_states)))),
            rotate(attn.norm_k(split(attn.to_k(hidden_states)))),
        )
        value = split(attn.to_v(hidden_states))
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=attention_mask
        )
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


class PackedTransformer(nn.Module):
    """Computes what a `ZImageTransformer2DModel` without a rotary axis for captions computes, for one image size, a
    quarter faster.

    Z-Image fills captions up to 32 tokens with one learned vector and attends to it. Where captions carry no rotary
    position (`axes_dims[0]` is 0; the text encoder has its own) those tokens stay equal in every layer, so one of them
    with log(count) added to its attention logit does the work of all. Shares the transformer's parameters; replaces its
    attention processors, so sample from a copy. `tap` names the layer whose image tokens are returned too."""

    def __init__(self, transformer, max_tokens: int, tap: int, compiled: bool) -> None:
        super().__init__()
        if transformer.config.axes_dims[0] != 0:
            raise ValueError(
                f"packed captions need axes_dims[0] = 0, got {transformer.config.axes_dims}; build the transformer"
                " without it"
            )
        self.transformer, self.max_tokens, self.tap = transformer, max_tokens, tap
        blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
        for block in blocks:
            block.attention.set_processor(RealRotaryAttention())
            if compiled:
                block.compile(dynamic=False)

    def _rotary(self, ids: Tensor) -> Tensor:
        """Row and column of each token [S, 2] -> [1, S, head/2, 2]."""
        return torch.view_as_real(self.transformer.rope_embedder(F.pad(ids, (1, 0)).int()))[None]

    def forward(self, latents: Tensor, times: Tensor, captions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(output [B, C, H, W], image tokens after layer `tap` [B, HW/4, width]).

        latents: [B, C, H, W]. times: [B], 1 - sigma. captions: [B, max_tokens, text width], right-padded. lengths: [B]
        in 1..max_tokens."""
        model, device = self.transformer, latents.device
        batch, channels, height, width = latents.shape
        rows, columns = height // 2, width // 2
        modulation = model.t_embedder(times * model.t_scale).type_as(latents)
        position = torch.arange(self.max_tokens, device=device)
        caption_rotary = self._rotary(torch.zeros(self.max_tokens + 1, 2, device=device))
        bias = torch.zeros(batch, self.max_tokens + 1, device=device)
        bias[:, :-1].masked_fill_(position >= lengths[:, None], -torch.inf)
        bias[:, -1] = (PAD_TO - lengths).log()
        text = torch.cat([model.cap_embedder(captions), model.cap_pad_token.expand(batch, 1, -1)], dim=1)
        for block in model.context_refiner:
            text = block(text, bias[:, None, None], caption_rotary)

        grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1).flatten(
            0, 1
        )
        image_rotary = self._rotary(grid.to(device))
        patches = (
            latents.view(batch, channels, rows, 2, columns, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(batch, rows * columns, -1)
        )
        image = model.all_x_embedder["2-1"](patches)
        for block in model.noise_refiner:
            image = block(image, None, image_rotary, modulation)

        stream = torch.cat([image, text], dim=1)
        rotary = torch.cat([image_rotary, caption_rotary], dim=1)
        bias = torch.cat([bias.new_zeros(batch, rows * columns), bias], dim=1)[:, None, None]
        tapped = stream
        for index, block in enumerate(model.layers):
            stream = block(stream, bias, rotary, modulation)
            tapped = stream if index == self.tap else tapped
        out = model.all_final_layer["2-1"](stream[:, : rows * columns], c=modulation)
        out = out.view(batch, rows, columns, 2, 2, channels).permute(0, 5, 1, 3, 2, 4).reshape(latents.shape)
        return out, tapped[:, : rows * columns]
