"""Configuration of `jobs/t2i.py`: generator, prompts, diffusion actors, reward, algorithm, anchor, held-out images,
watch.

Defaults are the settings that worked on the built-in generator: reward at sigma >= .5, velocity held to the reference
below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from zr_ray.config.sections import CheckpointSection, Section, TrackedRunSection, field
from zr_ray.config.t2i_reward import RewardSection
from zr_ray.config.workers import WorkerSection

POLICY_ALGORITHMS = ("nft", "flow_grpo")
"""Scores only; images of a prompt are compared with one another."""
GRADIENT_ALGORITHMS = ("flowbp", "refl", "draft", "draft_lv")
"""The reward's gradient with respect to the image."""


class LoraSection(Section):
    """Low-rank adapters instead of all weights of the transformer."""

    rank: int = field(0, "rank; 0 trains all weights", ge=0)
    comfyui: bool = field(
        False, "also write generator/comfyui/lora.safetensors: the adapters under the names that ComfyUI reads"
    )
    alpha: float = field(64.0, "scale of the adapters, divided by the rank (Flow-GRPO: rank 32, alpha 64)", gt=0)


class GeneratorSection(Section):
    """The generator that is trained, and how it samples, in training and on held-out prompts alike."""

    path: str = field(
        "builtin", "`builtin` or a diffusers folder of Z-Image, Stable Diffusion 3.x, FLUX.1 or Qwen-Image"
    )
    height: int = field(64, "pixels", ge=8)
    width: int = field(64, "pixels", ge=8)
    max_prompt_tokens: int = field(9, "longest prompt; longer ones are refused, not cut", ge=1)
    steps: int = field(8, "sampling steps of the pipeline's own schedule", ge=1)
    guidance_scale: float = field(
        0.0, "in the pipeline's own meaning (Z-Image: 0 is none, others: 1); with guidance only nft may train", ge=0
    )
    embedded_guidance: float | None = field(
        None, "scale that guidance-distilled models (FLUX.1-dev) are told; null for others", ge=0
    )
    micro_batch: int = field(16, "images of one forward, in sampling and training; the knob on activation memory", ge=1)
    packed: bool = field(
        True, "run a transformer without rotary axis for captions (the built-in one) in fixed shapes, a quarter faster"
    )
    compiled: bool = field(
        True, "compile its blocks: 30 instead of 75 ms an image on one thread, for 40 s at the start"
    )
    activation_checkpointing: bool = field(False, "recompute activations in the backward")
    lora: LoraSection = Field(default_factory=LoraSection)


def _absolute(path: Path | None) -> Path | None:
    if path is not None and not path.is_absolute():
        raise ValueError(
            f"must be an absolute path, got {path}: a job runs in a temporary copy of the working directory"
        )
    return path


class PromptsSection(Section):
    """What the generator is asked for."""

    path: Path | None = field(
        None, "absolute path of a prompt list (.txt, .csv, .tsv, .jsonl); null: the simulated world's prompts"
    )
    column: str | None = field(None, "column or key of the prompt; null: the usual names")
    held_out: int = field(256, "prompts of the held-out set; of a list, every so many-th; the world has its own", ge=2)
    seed: int = field(0, "draws world prompts and splits lists; independent of run.seed", ge=0)

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return _absolute(path)


class ActorSection(WorkerSection):
    """Diffusion actors: data-parallel ranks under Ray Train, each with the whole generator."""

    workers: int = field(1, "ranks; each samples and scores its share of a step's prompts", ge=1)
    cpus: float = field(1.0, "CPU cores reserved per rank", ge=0)
    gpus: float = field(0.0, "GPUs per rank, 0 or 1", ge=0, le=1)
    threads: int = field(1, "torch threads of a rank; the reward replica beside it needs a core of its own", ge=1)
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "of the transformer; masters, optimizer and scheduler maths are float32"
    )
    lr: float = field(
        2e-4,
        "learning rate of AdamW; 3e-4 learns a little faster and loses diversity; 1e-4 for the gradient family",
        gt=0,
    )
    warmup_steps: int = field(5, "steps of linear warm-up", ge=0)
    betas: tuple[float, float] = field((0.9, 0.99), "moment decays")
    weight_decay: float = field(0.0, "of AdamW", ge=0)
    grad_clip: float = field(1.0, "largest global gradient norm; 0: none", ge=0)
    ema_decay: float = field(0.95, "of the averaged weights, which are evaluated and saved", ge=0, lt=1)
    deadline_s: float = field(600.0, "seconds one collective may take", gt=0)


class AnchorSection(Section):
    """Holding the velocity to the reference. Weights are relative to the size of the reward's gradient: 1 / (2 w) is
    the distance, as a root mean square of the velocity, at which both balance."""

    enabled: bool = field(True, "false: the reward alone (which ruined every image it was tried on)")
    below: float = field(1.0, "weight where the reward does not act; 3.2 absolute for nft on the built-in one", ge=0)
    above: float = field(0.1, "weight where it acts", ge=0)
    draws: int = field(
        1,
        "gradient family and flow_grpo: probes of an image at sigma below t2i.reward_sigma_min, for the anchor alone",
        ge=0,
    )


class NftSection(Section):
    """DiffusionNFT."""

    draws: int = field(
        2, "probes (sigma, noise) of an image; sigma covers the whole range, a part falls to the anchor alone", ge=1
    )
    mix: float = field(1.0, "b; smaller is more careful (.1 for several rewards in the paper)", gt=0, le=1)
    old_policy: Literal["on_policy", "slow", "late"] = field(
        "on_policy", "how the weights that sample follow the trained ones"
    )


class FlowGrpoSection(Section):
    """Flow-GRPO."""

    sde: Literal["flow", "dance", "cps"] = field("flow", "noise of the stochastic steps")
    strength: float = field(0.7, "a: flow .7, dance .3, cps .8 in their papers", gt=0)
    window: int = field(3, "stochastic steps of a rollout, trained on; the others are ODE steps", ge=1)
    clip: float = field(
        1e-4, "clip range of the ratio; densities are means over latent numbers, so it depends on the image size", gt=0
    )
    beta_kl: float = field(0.0, "weight of the step's KL to the reference, nats per number", ge=0)
    guard: bool = field(False, "GRPO-Guard: ratio corrected and normalized over steps")
    updates: int = field(1, "optimizer updates on one batch; above 1 the ratio matters", ge=1)
    same_noise: bool = field(
        False,
        "members of a group start from one noise (DanceGRPO) and differ by the stochastic steps alone, which are what"
        " is trained; false: each from its own (Flow-GRPO)",
    )


class GradientSection(Section):
    """flowbp, refl, draft, draft_lv."""

    steps_with_gradient: int = field(2, "K: steps that carry the reward's gradient (flowbp, draft)", ge=1)
    rule: Literal["euler", "lagrange"] = field("euler", "weights of FlowBP's surrogate")
    clip_to_median: float = field(
        1.0, "gradients of single images are cut at so many times the batch's median norm; 0: not", ge=0
    )
    inner_draws: int = field(2, "draft_lv: draws of noise at the last level", ge=1)
    perturb: float = field(
        0.0, "take the gradient at image - r g / |g| (flatness): r, in pixel values summed as a norm; 0: not", ge=0
    )


class T2iSection(Section):
    """The algorithm."""

    algorithm: Literal["nft", "flow_grpo", "flowbp", "refl", "draft", "draft_lv"] = field(
        "nft", "one file each in zr_ray/loops"
    )
    steps: int = field(80, "steps: sample, score, update", ge=1)
    stop_after_s: float | None = field(
        None, "end training after so many seconds of training steps; null: after all steps", gt=0
    )
    prompts_per_step: int = field(8, "different prompts of a step, all ranks together", ge=1)
    group_size: int = field(12, "images of a prompt in a step (policy family)", ge=2)
    advantage: Literal["rank", "std"] = field(
        "rank", "normal scores of ranks inside the group, or (r - mean) / std; gdpo brings its own"
    )
    reward_sigma_min: float = field(
        0.5, "the reward acts on steps that start at this noise level or above; 0: everywhere", ge=0, lt=1
    )
    anchor: AnchorSection = Field(default_factory=AnchorSection)
    nft: NftSection = Field(default_factory=NftSection)
    flow_grpo: FlowGrpoSection = Field(default_factory=FlowGrpoSection)
    gradient: GradientSection = Field(default_factory=GradientSection)


class HeldOutSection(Section):
    """Images of prompts that are never trained on, from the ODE sampler with fixed noise, before, during and after."""

    every_steps: int = field(20, "steps between looks at the watched prompts; 0: only before and after", ge=0)
    watched: int = field(48, "prompts of a look during training, the first of the held-out ones", ge=2)
    seeds: int = field(2, "images of a prompt, from noise that is the same before and after", ge=2)
    referee: str | None = field(
        None,
        "judge that only watches, never the reward: a name in zr_ray/assets or a folder; null: `referee`, if the"
        " package has one",
    )
    beside: bool = field(
        True, "also measure the untrained generator with guidance, with best of 2 and with twice the steps"
    )
    guidance_beside: float = field(1.5, "guidance of that row", ge=0)
    best_of: int = field(
        2, "above 2: also the untrained generator with the best of so many, which costs their sampling", ge=2
    )
    before_of: Path | None = field(
        None,
        "run folder whose look before training is taken over, if generator, prompts, noise and reward are the same"
        " there: a table of runs makes it once; null: made anew",
    )
    bootstrap_resamples: int = field(2000, "resamples over prompts for each 95 % interval", ge=20)
    grid: int = field(16, "prompts in the before/after picture", ge=1)

    @field_validator("before_of")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return _absolute(folder)


class WatchSection(Section):
    """Is the reward being fooled? Compares its rise with figures that it cannot move."""

    action: Literal["stop", "report", "off"] = field(
        "stop", "what an alarm does; the best weights by the independent score are kept anyway"
    )
    patience: int = field(2, "alarms in a row before it acts: one may be noise", ge=1)
    errors: float = field(2.0, "the reward counts as risen beyond so many standard errors", gt=0)
    far: float = field(
        1.0, "an image statistic is far off beyond so many standard deviations of the untrained images", gt=0
    )


class T2iConfig(Section):
    """Everything `jobs/t2i.py` can be told."""

    run: TrackedRunSection = Field(default_factory=TrackedRunSection)
    generator: GeneratorSection = Field(default_factory=GeneratorSection)
    prompts: PromptsSection = Field(default_factory=PromptsSection)
    actor: ActorSection = Field(default_factory=ActorSection)
    reward: RewardSection = Field(default_factory=RewardSection)
    t2i: T2iSection = Field(default_factory=T2iSection)
    held_out: HeldOutSection = Field(default_factory=HeldOutSection)
    watch: WatchSection = Field(default_factory=WatchSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)

    @property
    def is_policy(self) -> bool:
        """Whether the algorithm needs scores only."""
        return self.t2i.algorithm in POLICY_ALGORITHMS

    @model_validator(mode="after")
    def _sections_fit(self) -> T2iConfig:
        t2i, name = self.t2i, self.t2i.algorithm
        if t2i.prompts_per_step % self.actor.workers:
            raise ValueError(
                f"t2i.prompts_per_step must be a multiple of actor.workers ({self.actor.workers}), got"
                f" {t2i.prompts_per_step}"
            )
        if self.actor.warmup_steps >= t2i.steps:
            raise ValueError(f"actor.warmup_steps must be below t2i.steps ({t2i.steps}), got {self.actor.warmup_steps}")
        if not self.is_policy and self.reward.function is not None:
            raise ValueError(
                f"{name} needs the reward's gradient, a reward.function gives scores only; use nft or flow_grpo, or"
                " a judge"
            )
        if not self.is_policy and (lacking := [s.name for s in self.reward.sources if not s.differentiates]):
            raise ValueError(
                f"{name} needs the reward's gradient, source {lacking[0]} gives scores only; use nft or flow_grpo, or"
                " write it in torch and say differentiable: true"
            )
        if self.is_policy and self.reward.balance:
            raise ValueError(
                f"reward.balance is for the reward's gradient, {name} uses scores only; use reward.aggregation gdpo"
            )
        if not self.is_policy and self.reward.aggregation != "sum":
            raise ValueError(
                f"{name} needs reward.aggregation sum, which is what the service differentiates, got"
                f" {self.reward.aggregation}"
            )
        if self.held_out.watched > self.prompts.held_out:
            raise ValueError(
                f"held_out.watched must be at most prompts.held_out ({self.prompts.held_out}), got"
                f" {self.held_out.watched}"
            )
        if self.reward.refresh.enabled and self.reward.refresh.every_steps >= t2i.steps:
            raise ValueError(
                f"reward.refresh.every_steps must be below t2i.steps ({t2i.steps}), got"
                f" {self.reward.refresh.every_steps}: no look would come, leave it at 0"
            )
        if self.reward.function is not None and self.reward.target is not None:
            raise ValueError("reward.function and reward.target exclude one another; name one")
        return self
