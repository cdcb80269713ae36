"""Sections of workers: what each kind asks Ray for, and what engines and learners can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from zr_ray.config.sections import Section, field
from zr_ray.functional.schedule import learning_rate

Dtype = Literal["float32", "bfloat16"]
RESOURCE = r"^[A-Za-z_][\w\-.]*$"
"""Names that Ray takes for a custom resource."""
BATCHED_TOKENS = 8192
"""Tokens of one engine step by default: what vLLM's own default for throughput is on large GPUs."""
CPU_CACHE_GIB = 1.0
"""Largest key-value cache of a CPU engine by default: it is written at the start, so all of it is held."""
VLLM_SHARE = 0.9
"""Part of a GPU that vLLM plans with by default (gpu_memory_utilization)."""


class WorkerSection(Section):
    """What one kind of worker asks Ray for."""

    workers: int = field(1, "number of actors", ge=1)
    cpus: float = field(1.0, "CPU cores reserved per actor", ge=0)
    gpus: float = field(0.0, "GPUs reserved per actor; a fraction lets actors share one GPU", ge=0)
    resource: str | None = field(
        None,
        "custom resource a node must offer to hold these actors, for example zr_rollout (cluster/aws.yaml); null: any"
        " node",
        pattern=RESOURCE,
    )
    threads: int = field(
        2, "OMP threads per actor; phases alternate, so both kinds may use all cores (2 in the reference machine)", ge=1
    )
    dtype: Dtype = field("float32", "dtype the engine computes in; float32 on CPU, bfloat16 on GPUs")
    restarts: int = field(
        3,
        "times lost ones are brought back before the job ends: an engine in its life, learners since their last"
        " checkpoint",
        ge=0,
    )

    @field_validator("gpus")
    @classmethod
    def _whole_gpus(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"must be a whole number above 1, got {gpus}: Ray shares one GPU between actors, never one and a half"
            )
        return gpus


class RolloutSection(WorkerSection):
    """vLLM actors that sample judgements."""

    max_new_tokens: int = field(
        32,
        "length limit of one output, tokens; chains of the simulated world have at most 19 words, marker and score"
        " follow",
        ge=2,
    )
    max_num_seqs: int = field(256, "sequences one engine decodes at the same time", ge=1)
    max_batched_tokens: int | None = field(
        None,
        f"tokens one engine step may process, prompt and decode together; null: {BATCHED_TOKENS}, or the longest"
        " question and output where the engine cannot split a question over steps",
        ge=256,
    )
    max_model_len: int | None = field(
        None,
        "longest question and output together, tokens; null: what the data's longest question, its image and"
        " max_new_tokens need",
        ge=32,
    )
    chunked_prefill: bool | None = field(
        None,
        "a question may be split over engine steps; null: on GPUs only (vLLM cannot rewind a seeded CPU generator after"
        " a partial prefill)",
    )
    prefix_caching: bool | None = field(
        None,
        "samples of a group share the computed question; null: on, off for recurrent layers on CPU, where vLLM would"
        " want chunked prefill for it",
    )
    largest_image: tuple[int, int] | None = field(
        None,
        "height and width, pixels, of the image that the engine plans its encoder memory with; null: the data's"
        " largest",
    )
    enforce_eager: bool | None = field(
        None,
        "no CUDA graphs or compilation; null: true on CPU, false on GPUs, where eager decoding of a 2.4 B judge was"
        " launch-bound (40 ms a step for weights that are read in 1 ms)",
    )
    gpu_memory_frac: float | None = field(
        None,
        f"part of a whole GPU that vLLM plans with; null: {VLLM_SHARE} of rollout.gpus, so an actor with half a GPU"
        " leaves the other half alone",
        gt=0,
        le=1,
    )
    tensor_parallel: int | None = field(
        None,
        "processes that one engine is split over, a GPU each; null: rollout.gpus where that is above 1, else 1. On CPU"
        " it shows what a split engine does, and is slower",
        ge=1,
    )
    sleep: bool | None = field(
        None,
        "the engine gives weights and cache back to the GPU while the learner trains, and gets them with the next push;"
        " null: where engine and learner share one GPU. Not run on a GPU yet",
    )
    block_size: int | None = field(
        None,
        "tokens of a block of the key-value cache; outputs of one question share the whole blocks of its prompt, what"
        " is left is computed for each; null: vLLM's own choice (128 on CPU, where multiples of 32 are fast)",
        ge=16,
        multiple_of=16,
    )
    kv_cache_gib: float | None = field(
        None,
        "key-value cache per engine, GiB (CPU engines; GPU engines use what is free); null: what max_num_seqs of the"
        f" longest sequences need, at most {CPU_CACHE_GIB:g}",
        gt=0,
    )
    start_deadline_s: float = field(
        300.0, "seconds an engine may take to start; multi-process vLLM took 28 s on 2 cores", gt=0
    )
    deadline_s: float = field(600.0, "seconds one step's rollouts or one evaluation batch may take", gt=0)

    @model_validator(mode="after")
    def _split_over_its_gpus(self) -> RolloutSection:
        if self.tensor_parallel and self.gpus > 0 and self.tensor_parallel != max(1, int(self.gpus)):
            raise ValueError(
                f"rollout.tensor_parallel must be rollout.gpus ({self.gpus:g}), a GPU for each process, got"
                f" {self.tensor_parallel}"
            )
        if self.sleep and self.gpus == 0:
            raise ValueError("rollout.sleep gives a GPU's memory back, and this engine has none: rollout.gpus is 0")
        return self

    @model_validator(mode="after")
    def _what_vllm_refuses_at_its_start(self) -> RolloutSection:
        if self.max_batched_tokens is not None and self.max_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"rollout.max_batched_tokens must be at least rollout.max_num_seqs ({self.max_num_seqs}), a token each,"
                f" got {self.max_batched_tokens}"
            )
        if self.max_model_len is None:
            return self
        if self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"rollout.max_model_len must hold a question beside rollout.max_new_tokens = {self.max_new_tokens}, got"
                f" {self.max_model_len}"
            )
        whole = self.gpus == 0 and not self.chunked_prefill
        if whole and self.max_batched_tokens is not None and self.max_model_len > self.max_batched_tokens:
            raise ValueError(
                f"rollout.max_batched_tokens must be at least rollout.max_model_len ({self.max_model_len}), got"
                f" {self.max_batched_tokens}: an engine on CPU does not split a question over two steps"
            )
        return self


class LearnerSection(WorkerSection):
    """DeepSpeed ranks, hosted by Ray Train."""

    zero_stage: int = field(1, "ZeRO stage: 0 none, 1 optimizer, 2 + gradients, 3 + parameters sharded", ge=0, le=3)
    lr: float = field(
        2e-4, "peak learning rate of AdamW; 2e-4 for the built-in judge, 1e-6 to 1e-5 for billions of parameters", gt=0
    )
    min_lr_frac: float = field(0.1, "learning rate at the end of the cosine, as a fraction of the peak", ge=0, le=1)
    warmup_steps: int = field(5, "optimizer updates of linear warm-up", ge=0)
    weight_decay: float = field(0.0, "AdamW weight decay", ge=0)
    betas: tuple[float, float] = field((0.9, 0.95), "AdamW moment decays")
    grad_clip: float = field(1.0, "largest global gradient norm; 0 switches clipping off", ge=0)
    max_tokens_per_microbatch: int = field(
        8192, "padded text tokens of one forward; the only knob on activation memory", ge=1
    )
    freeze: tuple[str, ...] = field((), "parameter-name prefixes that are not trained, for example model.visual")
    gradient_checkpointing: bool = field(
        False,
        "compute a layer's activations again in the backward pass instead of keeping them: 9 % slower and a quarter"
        " less memory with a 2.4 B judge on an H200; the gradients are the same",
    )
    offload: Literal["none", "optimizer", "parameters"] = field(
        "none",
        "what lies in host memory instead of the GPU's: optimizer states with their gradients and fp32 weights"
        " (optimizer, ZeRO stage 2 or 3), or the parameters too (parameters, stage 3). AdamW then runs on the CPU",
    )
    gpu_memory_frac: float | None = field(
        None,
        "part of a whole GPU that a learner which shares one may use; null: learner.gpus. With rollout.sleep it may be"
        " more: what it needs to train, and beside the engine's part while that is awake only what it keeps",
        gt=0,
        le=1,
    )
    lora_rank: int = field(
        0,
        "rank of LoRA adapters on the language model's linear layers; 0 trains the weights themselves. The reference of"
        " the KL term is then a second adapter, not a copy of the model",
        ge=0,
    )
    lora_alpha: float = field(32.0, "LoRA's scale: the adapter's product is multiplied by lora_alpha / lora_rank", gt=0)
    lora_targets: tuple[str, ...] = field(
        (), "last parts of the names of layers that get an adapter, for example q_proj; empty: all linear layers"
    )
    deadline_s: float = field(
        600.0, "seconds one update or one collective may take before the step counts as hung", gt=0
    )

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"must both lie in [0, 1), got {list(betas)}")
        return betas

    def rate(self, update: int, updates: int) -> float:
        """Learning rate of optimizer update `update` (0-based) of `updates` in all."""
        return learning_rate(update, updates, self.lr, self.warmup_steps, self.min_lr_frac)

    @model_validator(mode="after")
    def _one_gpu_at_most(self) -> LearnerSection:
        if self.gpus > 1:
            raise ValueError(
                f"learner.gpus must be at most 1, got {self.gpus:g}: a DeepSpeed rank drives one GPU, or shares it with"
                " an engine (learner.gpus=.5 rollout.gpus=.5); raise learner.workers instead"
            )
        if 0 < self.gpus < 1 and self.workers > 1:
            raise ValueError(
                f"learner.workers must be 1 where learner.gpus is a fraction ({self.gpus:g}), got {self.workers}: NCCL"
                " refuses two ranks on one GPU; give each rank a whole one"
            )
        return self

    @model_validator(mode="after")
    def _stage_that_offloads(self) -> LearnerSection:
        wanted = {"optimizer": (2, 3), "parameters": (3,)}.get(self.offload)
        if wanted and self.zero_stage not in wanted:
            raise ValueError(
                f"learner.zero_stage must be {' or '.join(map(str, wanted))} with learner.offload {self.offload}, got"
                f" {self.zero_stage}: DeepSpeed moves to the host what a stage shards"
            )
        return self

    @model_validator(mode="after")
    def _zero_stage_of_bf16(self) -> LearnerSection:
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError(
                "learner.zero_stage must be at least 1 with learner.dtype bfloat16, got 0: DeepSpeed 0.19.8 then takes"
                " a zero-gradient Adam step at start and a first update of 0.744 lr; use stage 1, which shards nothing"
                " on one rank"
            )
        return self
