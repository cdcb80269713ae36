"""Flow matching for a Z-Image pipeline: noise levels, the velocity the pipeline integrates, the auxiliary object map.

    x_sigma = (1 - sigma) x_0 + sigma eps          transformer(x_sigma, time = 1 - sigma) -> x_0 - eps

The pipeline negates the output and steps `x + (sigma_next - sigma) (eps - x_0)`; tests drive it with the exact
velocity.
Left out on purpose: several image sizes in a batch; image conditions; gradient accumulation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zr_ray.builtin.generator_scenes import MAP_CLASSES


def sample_sigmas(count: int, *, mean: float, spread: float, shift: float, generator: torch.Generator) -> Tensor:
    """Stratified noise levels: u = sigmoid(mean + spread z), sigma = shift u / (1 + (shift - 1) u); one z per 1/count
    of the normal.

    Returns: [count] in (0, 1), shuffled. Logit-normal of SD3 (arXiv 2403.03206, section 3.1) under its shift of section
    5.3.2."""
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    z = torch.special.ndtri(strata.double().clamp(1e-6, 1 - 1e-6)).float()
    u = torch.sigmoid(mean + spread * z)
    return shift * u / (1 + (shift - 1) * u)


def noised(latents: Tensor, noise: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """(x_sigma, the transformer's target x_0 - eps). latents, noise: [B, C, H, W]; sigmas: [B]."""
    level = sigmas[:, None, None, None]
    return (1 - level) * latents + level * noise, latents - noise


def tokenize(tokenizer, prompts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """(ids [B, max_tokens], lengths [B]) exactly as the pipeline tokenizes. Raises: ValueError on a prompt that would
    be cut."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    batch = tokenizer(texts, padding="max_length", max_length=max_tokens, truncation=False, return_tensors="pt")
    if batch.input_ids.shape[1] > max_tokens:
        raise ValueError(f"prompts need up to {batch.input_ids.shape[1]} tokens, max_tokens is {max_tokens}; raise it")
    return batch.input_ids, batch.attention_mask.sum(1)


class ObjectMapHead(nn.Module):
    """Auxiliary head: which object is seen at each latent position, from image tokens. Thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4 * sum(MAP_CLASSES.values()))

    def forward(self, tokens: Tensor, maps: Tensor) -> Tensor:
        """Mean cross-entropy of color, shape and size, nats. tokens: [B, (H/2)(W/2), width]; maps: [B, 3, H, W]."""
        batch, _, height, width = maps.shape
        logits = self.linear(F.layer_norm(tokens, tokens.shape[-1:]))
        logits = (
            logits.view(batch, height // 2, width // 2, 2, 2, -1)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(batch, -1, height, width)
        )
        parts = logits.split(tuple(MAP_CLASSES.values()), dim=1)
        return torch.stack([F.cross_entropy(part, maps[:, index]) for index, part in enumerate(parts)]).mean()


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) online, parameter by parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(online.parameters()), 1 - decay)
