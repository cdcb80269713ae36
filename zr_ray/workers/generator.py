"""Generator worker: one diffusion actor's model. Knows noise, steps, probes and losses of velocities; no rewards, no
algorithms.

An update is any number of `accumulate` calls and one `apply`. A probe is one (x, sigma, prompt) at which the velocity
is trained; an algorithm gives losses as functions of velocities, so its gradient, the clipping of single samples and
the anchor meet at the velocity and the model sees one backward. Ranks are data parallel: gradients are summed over all
and divided by the global count of images. Weights come in named sets ("trained", "average", "reference", "old") that
are copied into the one model, so nothing is compiled twice.
Left out on purpose: the text encoder and the codec are never trained; sharding of one model over several GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.t2i import ActorSection, AnchorSection, GeneratorSection
from zr_ray.functional.velocity_anchor import anchor_loss, anchor_weights, gradient_size
from zr_ray.models.generators.adapter import Conditions, Noise, Picture, Trajectory, rollout
from zr_ray.models.generators.load import load_adapter
from zr_ray.workers.trained_weights import TrainedWeights

SIZE_DECAY = 0.9
"""Of the running mean of the reward's gradient, which the anchor's weights are relative to: about ten updates."""


@dataclass(frozen=True)
class Probes:
    """Where the velocity is trained."""

    latents: Tensor
    """[M, ...] x."""
    sigmas: Tensor
    """[M]."""
    conditions: Conditions
    """M rows."""

    def __len__(self) -> int:
        return len(self.latents)


VelocityLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, float]]]
"""(velocities [m, ...] of some probes, the reference's, their indices [m]) -> (loss of each [m], sums of metrics)."""


class GeneratorWorker:
    """Owns one generator. Verbs: encode, sample, decode, accumulate, apply, save, load, save_generator."""

    def __init__(
        self, folder: Path, generator: GeneratorSection, actor: ActorSection, rank: int = 0, world: int = 1
    ) -> None:
        torch.set_num_threads(actor.threads)
        self.folder, self.options, self.actor, self.rank, self.world = Path(folder), generator, actor, rank, world
        self.device = torch.device("cuda", torch.cuda.current_device()) if actor.gpus > 0 else torch.device("cpu")
        picture = Picture(generator.height, generator.width, generator.max_prompt_tokens)
        dtype = torch.bfloat16 if actor.dtype == "bfloat16" else torch.float32
        self.adapter = load_adapter(folder, picture, dtype, str(self.device), generator.embedded_guidance)
        self.weights = TrainedWeights(self._trainable(), actor, world)
        wanted = generator.packed and not generator.activation_checkpointing
        self.fixed_shapes = wanted and self.adapter.pack(generator.compiled)
        if generator.activation_checkpointing:
            self.adapter.transformer.enable_gradient_checkpointing()
        self.sigmas = self.adapter.sigmas(generator.steps)
        self.gradient_size = 0.0
        """Running mean size of the reward's gradient; 0 before the first update."""
        self._prompts: dict[str, Conditions] = {}

    def _trainable(self) -> list[Tensor]:
        """Parameters that are trained: all of the transformer's, or LoRA's."""
        lora, transformer = self.options.lora, self.adapter.transformer
        if lora.rank:
            from peft import LoraConfig

            transformer.requires_grad_(False)
            transformer.add_adapter(
                LoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    init_lora_weights="gaussian",
                    target_modules=list(self.adapter.lora_targets),
                )
            )
        else:
            transformer.requires_grad_(True)
        return [value for value in transformer.parameters() if value.requires_grad]

    # ---- sampling ----

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of prompts; each different one is encoded once."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._prompts:
                self._prompts[prompt] = self.adapter.encode([prompt])
        return Conditions.joined([self._prompts[prompt] for prompt in prompts])

    def noise(self, seeds: Sequence[tuple[int, ...]]) -> Tensor:
        """[B, ...] standard normal; each image's depends on its own seed and on nothing else."""
        rows = []
        for seed in seeds:
            rows.append(torch.randn(self.adapter.latent_shape, generator=generator_of(*seed)))
        return torch.stack(rows).to(self.device)

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, noise: Tensor, *, guidance_scale: float | None = None,
        sigmas: Tensor | None = None, stochastic: Noise | None = None, draw: Callable[[int], Tensor] | None = None,
    ) -> Trajectory:  # fmt: skip
        """One rollout of up to `micro_batch` images with the model's present weights. Fewer are padded: shapes stay
        those compiled for."""
        count = len(noise)
        guidance = self.options.guidance_scale if guidance_scale is None else guidance_scale
        conditions, start = self._padded(conditions, noise)
        empty = self.encode([""]).rows([0] * len(start)) if self.adapter.guided(guidance) else None

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            sigma = sigma.to(x.device)
            v = self.adapter.velocity(x, sigma, conditions)
            return v if empty is None else self.adapter.guide(v, self.adapter.velocity(x, sigma, empty), guidance)

        def padded_draw(step: int) -> Tensor:
            return self._pad_rows(draw(step))

        made = rollout(
            velocity, start, self.sigmas if sigmas is None else sigmas, stochastic, padded_draw if draw else None
        )
        return Trajectory(tuple(x[:count] for x in made.states), tuple(v[:count] for v in made.velocities))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        return self.adapter.decode(latents)

    def image_gradient_to_latents(self, latents: Tensor, gradients: Tensor) -> Tensor:
        """dR/dx_0 from dR/dimage: one backward through the decoder.   latents: [B, ...]; gradients: [B, 3, H, W]."""
        leaf = latents.detach().requires_grad_()
        (got,) = torch.autograd.grad(self.adapter.decode(leaf), leaf, gradients.to(self.device))
        return got

    # ---- updates ----

    def velocities(self, probes: Probes) -> Tensor:
        """[M, ...] of the model's present weights, without gradient."""
        parts = []
        with torch.no_grad():
            for index in self._micro_batches(len(probes)):
                parts.append(self._velocity(probes, index)[: len(index)])
        return torch.cat(parts)

    def reference_velocities(self, probes: Probes) -> Tensor:
        """[M, ...] of the weights that training began with."""
        with self.weights.use("reference"):
            return self.velocities(probes)

    def accumulate(
        self, probes: Probes, losses: VelocityLoss, anchor: AnchorSection, smallest: float, images: int,
        reference: Tensor | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Forward and backward over all probes; gradients add up until `apply`.

        A probe whose loss has no gradient feels the anchor alone. Args: smallest: sigma from which the reward acts.
        images: of all ranks, what the sum is divided by. reference: `reference_velocities` of the probes, where they
        are there already.   Returns: sums of metrics over this rank's probes."""
        if reference is None:
            reference = self.reference_velocities(probes)
        weights = (
            anchor_weights(probes.sigmas, smallest, anchor.below, anchor.above).to(self.device) * self.gradient_size
        )
        sums = {"loss/total": 0.0, "anchor/distance": 0.0, "anchor/size": 0.0, "anchor/sized": 0.0}
        for index in self._micro_batches(len(probes)):
            velocity = self._velocity(probes, index)
            leaf = velocity[: len(index)].detach().requires_grad_()
            loss, metrics = losses(leaf, reference[index], index)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            sizes, held = gradient_size(gradient), anchor_loss(leaf, reference[index])
            if anchor.enabled:
                gradient = gradient + torch.autograd.grad((weights[index] * held).sum(), leaf)[0]
            velocity.backward(
                torch.cat([gradient, gradient.new_zeros(len(velocity) - len(index), *gradient.shape[1:])]) / images
            )
            sums["loss/total"] += float(loss.detach().sum())
            sums["anchor/distance"] += float(held.detach().sum())
            sums["anchor/size"] += float(sizes.sum())
            sums["anchor/sized"] += float((sizes > 0).sum())
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def apply(self, lr: float, gradient_size_now: float) -> dict[str, float]:
        """One optimizer step at rate `lr` with what was accumulated on all ranks. Returns the gradient norm before
        clipping.

        gradient_size_now: mean size of the reward's gradient in this update, all ranks together; 0 if there was
        none."""
        if gradient_size_now > 0:
            keep = SIZE_DECAY if self.gradient_size else 0.0
            self.gradient_size = keep * self.gradient_size + (1 - keep) * gradient_size_now
        return self.weights.apply(lr) | {"anchor/gradient_size": self.gradient_size}

    def reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def reduce_max(self, value: float) -> float:
        """Maximum over ranks."""
        return float(self.gathered(torch.tensor([value], dtype=torch.float64)).max())

    def gathered(self, values: Tensor) -> Tensor:
        """[M] values [m] of all ranks, one rank after the other."""
        if self.world == 1:
            return values
        parts: list = [None] * self.world
        torch.distributed.all_gather_object(parts, values.cpu())
        return torch.cat(parts)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()

    # ---- to and from disk ----

    def save(self, folder: Path, state: dict) -> None:
        """Everything that a resumed run needs, and `state` (ints, floats, strings, tensors). All ranks hold the same;
        the first one writes."""
        if self.rank == 0:
            self.weights.save(folder, state | {"gradient_size": self.gradient_size})

    def load(self, folder: Path) -> dict:
        """Restore what `save` wrote and return `state`; every rank reads it."""
        state = self.weights.load(folder)
        self.gradient_size = state.pop("gradient_size")
        return state

    def save_generator(self, folder: Path, weights: str = "average") -> None:
        """A diffusers folder that `DiffusionPipeline.from_pretrained` loads, or with LoRA one that `load_lora_weights`
        loads."""
        from zr_ray.models.generators.save import save_lora, save_pipeline

        if self.rank:
            return
        with self.weights.use(weights):
            if self.options.lora.rank:
                save_lora(self.adapter, self.folder, folder, self.options.lora.comfyui)
            else:
                save_pipeline(self.adapter, self.folder, folder)

    # ---- batches of one shape ----

    def _micro_batches(self, count: int) -> list[Tensor]:
        return list(torch.arange(count).split(self.options.micro_batch))

    def _velocity(self, probes: Probes, index: Tensor) -> Tensor:
        """[micro_batch, ...]: rows behind the last index repeat the first one."""
        full = (
            torch.cat([index, index[:1].expand(self.options.micro_batch - len(index))]) if self.fixed_shapes else index
        )
        return self.adapter.velocity(
            probes.latents[full].to(self.device), probes.sigmas[full].to(self.device), probes.conditions.rows(full)
        )

    def _padded(self, conditions: Conditions, noise: Tensor) -> tuple[Conditions, Tensor]:
        missing = self.options.micro_batch - len(noise)
        if missing <= 0 or not self.fixed_shapes:
            return conditions, noise
        return conditions.rows([*range(len(noise))] + [0] * missing), self._pad_rows(noise)

    def _pad_rows(self, rows: Tensor) -> Tensor:
        missing = self.options.micro_batch - len(rows)
        return (
            rows
            if missing <= 0 or not self.fixed_shapes
            else torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])
        )


def generator_of(*numbers: int) -> torch.Generator:
    """A random generator that depends on all the numbers: neighbors give unrelated streams."""
    import numpy as np

    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
