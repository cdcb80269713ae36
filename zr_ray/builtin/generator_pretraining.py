"""One pre-training run of the built-in generator: its state, one step, its checkpoints. The loop is
`jobs/builtin/pretrain_generator.py`.

Everything random in step n is drawn from (seed, n), so a run that was killed and resumed sees the scenes it would have
seen.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.builtin.flow_training import ObjectMapHead, noised, sample_sigmas, tokenize, update_ema
from zr_ray.builtin.generator_scenes import Defects, SceneBatch, sample_batch
from zr_ray.builtin.muon import Muon
from zr_ray.builtin.patch_codec import fit_codec
from zr_ray.builtin.tiny_generator import GeneratorSizes, build_tiny_generator
from zr_ray.config.pretrain_generator import OptimizerSection, PretrainGeneratorConfig
from zr_ray.data.files import atomic_file
from zr_ray.errors import CheckpointError
from zr_ray.models.generators.packed import PackedTransformer

MAX_TOKENS = 9
"""Longest prompt of the world with its end token: two objects of three words, "left of"."""
HELD_OUT_SEED = 2**31
"""Scenes of the held-out losses come from here; training steps count from 0."""


def rate_factor(options: OptimizerSection, step: int, progress: float) -> float:
    """Factor of both learning rates: linear warm-up over steps, 1, then linearly to 0 over the last share of the time.

    step: updates done so far. progress: share of the run's time that has passed."""
    warm = min(1.0, (step + 1) / max(1, options.warmup_steps))
    left = min(1.0, (1 - progress) / (1 - options.decay_from)) if options.decay_from < 1 else 1.0
    return warm * max(0.0, left)


class GeneratorPretraining:
    """Owns the online pipeline, its averaged copy and the optimizers."""

    def __init__(self, config: PretrainGeneratorConfig, device: str) -> None:
        """Fits the codec and builds the untrained models. `device`: where the models are trained."""
        self.config, self.device, self.step_count, self.trained_s = config, torch.device(device), 0, 0.0
        self.defects = Defects(**config.defects.model_dump())
        scenes = sample_batch(
            np.random.default_rng((config.seed, HELD_OUT_SEED + 1)), config.codec.scenes, self.defects
        )
        codec = fit_codec(
            scenes.pixels,
            config.codec.channels,
            steps=config.codec.steps,
            whitening=config.codec.whitening,
            seed=config.seed,
        )
        sizes = GeneratorSizes(**config.model.model_dump(), latent_channels=config.codec.channels)
        self.pipeline = build_tiny_generator(codec, sizes, config.seed).to(self.device)
        self.averaged = copy.deepcopy(self.pipeline)  # before the packed model takes over the attention processors
        self.packed = PackedTransformer(self.pipeline.transformer, MAX_TOKENS, config.flow.map_layer, config.compiled)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.map_head = ObjectMapHead(config.model.width).to(self.device)
        self.optimizers = self._build_optimizers()

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        named = list(self.pipeline.transformer.named_parameters())
        matrices = [
            value for name, value in named if value.ndim == 2 and (".attention.to_" in name or ".feed_forward." in name)
        ]
        chosen = {id(value) for value in matrices}
        others = [value for value in self._trained() if id(value) not in chosen]
        options = self.config.optimizer
        return [
            Muon(matrices, lr=options.matrix_learning_rate),
            torch.optim.AdamW(others, lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def _trained(self) -> list[Tensor]:
        modules = (self.pipeline.transformer, self.pipeline.text_encoder, self.map_head)
        return [value for module in modules for value in module.parameters()]

    @torch.no_grad()
    def _encode(self, batch: SceneBatch) -> Tensor:
        return self.pipeline.vae.encode(batch.pixels.to(self.device)).latent

    def _forward(
        self, latents: Tensor, noise: Tensor, sigmas: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(output, target, tapped image tokens); bfloat16 autocast on a GPU only, this repository's CPUs emulate it."""
        ids, lengths = tokenize(self.pipeline.tokenizer, prompts, MAX_TOKENS)
        x, target = noised(latents, noise, sigmas)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            captions = self.pipeline.text_encoder(
                input_ids=ids.to(self.device), output_hidden_states=True
            ).hidden_states[-2]
            out, tokens = self.packed(x, 1 - sigmas, captions, lengths.to(self.device))
        return out.float(), target, tokens.float()

    def step(self, progress: float) -> dict[str, float]:
        """One optimizer step. progress: share of the run's time that has passed.   Returns: its losses."""
        config, count = self.config, self.config.optimizer.batch
        rng = np.random.default_rng((config.seed, self.step_count))
        noise_source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = sample_batch(rng, count, self.defects)
        kept = torch.rand(count, generator=noise_source) >= config.flow.caption_dropout
        prompts = [prompt if keep else "" for prompt, keep in zip(batch.prompts, kept.tolist(), strict=True)]
        flow = config.flow
        sigmas = sample_sigmas(
            count, mean=flow.level_mean, spread=flow.level_spread, shift=config.model.shift, generator=noise_source
        )
        latents = self._encode(batch)
        noise = torch.randn(latents.shape, generator=noise_source).to(self.device)
        out, target, tokens = self._forward(latents, noise, sigmas.to(self.device), prompts)
        velocity_loss = (out - target).square().mean()
        map_loss = self.map_head(tokens, batch.maps.to(self.device)) if flow.map_weight else velocity_loss.new_zeros(())
        (velocity_loss + flow.map_weight * map_loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained(), config.optimizer.clip_norm)
        options, factor = config.optimizer, rate_factor(config.optimizer, self.step_count, progress)
        for optimizer, rate in zip(self.optimizers, (options.matrix_learning_rate, options.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step_count += 1
        decay = min(config.optimizer.ema_decay, self.step_count / (self.step_count + 10))
        for name in ("transformer", "text_encoder"):
            update_ema(getattr(self.averaged, name), getattr(self.pipeline, name), decay)
        return {
            "loss/velocity": velocity_loss.item(),
            "loss/object_map": map_loss.item(),
            "train/gradient_norm": norm.item(),
            "train/rate_factor": factor,
        }

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Velocity loss on 64 clean held-out scenes under their own and under shuffled prompts, per noise level (online
        weights)."""
        batch = sample_batch(np.random.default_rng((self.config.seed, HELD_OUT_SEED)), 64, Defects(0, 0, 0, 0, 0.5))
        latents = self._encode(batch)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        values = {}
        for level in (0.95, 0.8, 0.5):
            sigmas = torch.full((64,), level, device=self.device)
            for name, prompts in (("right", batch.prompts), ("shuffled", batch.prompts[1:] + batch.prompts[:1])):
                out, target, _ = self._forward(latents, noise, sigmas, prompts)
                values[f"held_out/{name}_{level}"] = (out - target).square().mean().item()
        return values

    def save(self, path: Path) -> None:
        """Write the whole state atomically: a kill at any moment leaves the old or the new checkpoint."""
        state = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step_count,
            "trained_s": self.trained_s,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "map_head": self.map_head.state_dict(),
        }
        for name, pipeline in (("online", self.pipeline), ("averaged", self.averaged)):
            state[name] = {
                part: getattr(pipeline, part).state_dict() for part in ("transformer", "text_encoder", "vae")
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises: CheckpointError if it was written under other sizes, scenes, losses or
        seed."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"cannot read {path}: {error}; delete it to start anew") from error
        ours = self.config.model_dump(mode="json")
        differing = [
            key for key in ours if key not in ("cadence", "compiled") and ours[key] != state["config"].get(key)
        ]
        if differing:
            raise CheckpointError(
                f"{path} was written under another configuration of {', '.join(differing)}; put it back, or use a new"
                " --output"
            )
        for name, pipeline in (("online", self.pipeline), ("averaged", self.averaged)):
            for part, weights in state[name].items():
                getattr(pipeline, part).load_state_dict(weights)
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.map_head.load_state_dict(state["map_head"])
        self.step_count, self.trained_s = state["step"], state["trained_s"]

    def sizes(self) -> dict[str, int]:
        """Parameters of each shipped part."""
        return {
            part: sum(p.numel() for p in getattr(self.averaged, part).parameters())
            for part in ("transformer", "text_encoder", "vae")
        }
