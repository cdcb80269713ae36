"""What post-training needs from a generator, whatever its family: conditions, velocity at sigma, schedule, decoder,
LoRA targets.

Conventions of a family (time or noise level, sign, packing, form of guidance, scale of the codec) end here. Everything
outside sees
v = eps - x_0 as a function of (x, sigma), with x in the layout that the pipeline's own loop carries. Each family is
tested against its pipeline: the same noise gives the same image.
Left out on purpose: pipelines that take images, ControlNets, several sizes in a batch.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zr_ray.functional.flow import ode_step, sde_step


@dataclass(frozen=True)
class Conditions:
    """What a batch of prompts turns into; the fields are the family's own."""

    tensors: dict[str, Tensor]
    """Name -> [B, ...]."""

    def rows(self, index: Tensor | Sequence[int]) -> Conditions:
        """Conditions of these rows, which may repeat."""
        index = torch.as_tensor(index)
        return Conditions({name: value[index.to(value.device)] for name, value in self.tensors.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @staticmethod
    def joined(parts: Sequence[Conditions]) -> Conditions:
        """One after the other."""
        return Conditions({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Picture:
    """Size of the images and length of the prompts."""

    height: int
    width: int
    max_prompt_tokens: int


class GeneratorAdapter(ABC):
    """One loaded pipeline behind the interface of its family."""

    family: str
    lora_targets: tuple[str, ...]
    """Names of the linear layers that LoRA adapts."""

    def __init__(self, pipeline, picture: Picture, embedded_guidance: float | None = None) -> None:
        """embedded_guidance: for guidance-distilled models, the scale they are told."""
        self.pipeline, self.picture, self.embedded_guidance = pipeline, picture, embedded_guidance
        pipeline.set_progress_bar_config(disable=True)
        for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            if (module := getattr(pipeline, name, None)) is not None:
                module.requires_grad_(False).eval()

    @property
    def transformer(self) -> nn.Module:
        """The module whose weights are trained."""
        return self.pipeline.transformer

    def pack(self, compiled: bool) -> bool:
        """Run the transformer in a faster form of fixed shapes, if the family has one; changes no result. Returns:
        whether it has."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the transformer lives."""
        return next(self.transformer.parameters()).device

    def sigmas(self, steps: int) -> Tensor:
        """[steps + 1] float32 noise levels as the pipeline makes them, falling, the last one 0."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        levels, options = self._schedule(steps)
        scheduler.set_timesteps(sigmas=levels, **options) if levels is not None else scheduler.set_timesteps(
            steps, **options
        )
        return scheduler.sigmas.float().cpu().clone()

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image, without the batch axis."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of prompts, without gradient; the empty prompt is the negative one of guidance."""

    @abstractmethod
    def velocity(self, latents: Tensor, sigmas: Tensor, conditions: Conditions) -> Tensor:
        """v [B, ...] float32 = dx/dsigma at latents [B, ...] and levels sigmas [B]; differentiable."""

    @abstractmethod
    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Velocity under guidance, in the family's own meaning of the scale."""

    def guided(self, scale: float) -> bool:
        """Whether the pipeline would use the negative prompt at this scale; false at the family's value for no
        guidance."""
        return scale > 1

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1], float32; differentiable where not clamped."""

    @abstractmethod
    def _schedule(self, steps: int) -> tuple[list[float] | None, dict]:
        """What the pipeline tells its scheduler: levels before the shift (None: the scheduler's own), and options."""


def shift_of_tokens(scheduler, tokens: int, max_shift: float) -> float:
    """mu of dynamic shifting for an image of so many tokens: linear between the two points of the scheduler's
    configuration."""
    low, high = scheduler.config.get("base_image_seq_len", 256), scheduler.config.get("max_image_seq_len", 4096)
    least, most = scheduler.config.get("base_shift", 0.5), scheduler.config.get("max_shift", max_shift)
    slope = (most - least) / (high - low)
    return tokens * slope + least - slope * low


@dataclass(frozen=True)
class Noise:
    """Noise of the stochastic steps of a rollout; the other steps are those of the ODE."""

    kind: str
    strength: float
    steps: tuple[int, ...]
    """Which steps are stochastic."""


@dataclass(frozen=True)
class Trajectory:
    """One rollout."""

    states: tuple[Tensor, ...]
    """N + 1 latents [B, ...] float32, from noise to clean."""
    velocities: tuple[Tensor, ...]
    """N, as they were used, guidance included."""

    @property
    def clean(self) -> Tensor:
        """The last state."""
        return self.states[-1]


def rollout(
    velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, sigmas: Tensor, noise: Noise | None = None,
    draw: Callable[[int], Tensor] | None = None,
) -> Trajectory:  # fmt: skip
    """Integrate from sigmas[0] to sigmas[-1] with Euler steps, stochastic ones where `noise` says so. Steps of no
    length are skipped.

    Args: velocity: (x [B, ...], sigma [B]) -> v. start: [B, ...] noise. sigmas: [N + 1]. draw: step -> standard normal
    like `start`."""
    states, velocities, x = [start.float()], [], start.float()
    for step, (now, then) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        level, after = now.expand(len(x)), then.expand(len(x))
        if now == then:
            v = velocities[-1]
        else:
            v = velocity(x, level).float()
            if noise is not None and step in noise.steps:
                mean, std = sde_step(x, v, level, after, noise.kind, noise.strength, float(sigmas[1]))
                x = mean + std.view(-1, *[1] * (x.ndim - 1)) * draw(step)
            else:
                x = ode_step(x, v, level, after)
        velocities.append(v)
        states.append(x)
    return Trajectory(tuple(states), tuple(velocities))
