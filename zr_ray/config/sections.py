"""What a job can be told, as typed frozen models: one top model per job, one section per worker or concern.

Every field states its meaning, unit and the origin of its default; `schema_help` prints them for `--help`. Reading YAML
and overrides is in `config_loader.py`, whose three verbs are offered here too.
Left out on purpose: defaults that depend on the machine, and Hydra-style composition; a named run is one YAML file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zr_ray.config.loader import dump_yaml, load_config, schema_help

__all__ = ["GdsoConfig", "dump_yaml", "load_config", "schema_help"]

Dtype = Literal["float32", "bfloat16"]
FP32_SYNC_TOLERANCE = 1e-5
"""Largest log-prob difference engine - learner after a push in fp32; measured 5e-7 with vLLM 0.32 against transformers
5.19."""
BF16_SYNC_TOLERANCE = 5e-2
"""The same when either side computes in bf16; measured 3e-3 to 1.5e-2."""


def _field(default: Any, description: str, why: str = "", **limits) -> Any:
    """A pydantic Field; `why` is the reason behind its limit and ends up in the error message."""
    return Field(default, description=description, json_schema_extra={"why": why} if why else None, **limits)


class Section(BaseModel):
    """Unknown keys are refused, values are checked, nothing can be changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    name: str | None = _field(
        None,
        "id of the run folder; null makes one from job, date, time and four random characters",
        pattern=r"^\w[\w.\-]*$",
    )
    root: Path | None = _field(
        None,
        "absolute folder of all run folders; null: `runs` in the submitter's checkout, else the environment's ZR_RUNS",
    )
    seed: int = _field(0, "seeds data order, sampling and bootstrap of the whole job", ge=0, lt=2**31)
    resume: Literal["latest"] | Path | None = _field(
        None, "continue the newest run (`latest`), or this run folder (a path, or an id under run.root)"
    )

    wait_for_nodes_s: float = _field(
        0.0, "seconds to wait for nodes that an autoscaler may still add; 0 refuses what the cluster cannot hold", ge=0
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path | None) -> Path | None:
        if root is not None and not root.is_absolute():
            raise ValueError(
                f"must be an absolute path, got {root}: a job runs in a temporary copy of the working directory"
            )
        return root


class JudgeSection(Section):
    """The model that is trained."""

    path: str = _field(
        "builtin",
        "`builtin` or `small` (the tiny judges inside the package), `student` (the one distilled from them) or a"
        " Hugging Face folder of a Qwen3-VL or Qwen3.5 model",
    )


class WorldSection(Section):
    """Size of the built-in simulated world, used when data.path is null."""

    train_groups: int = _field(700, "prompts with training labels", ge=1)
    test_groups: int = _field(
        250,
        "prompts with five simulated annotators each; on 1,000 images a mean HPA has a standard error of about 0.7"
        " points",
        ge=1,
    )
    dev_groups: int = _field(
        0,
        "prompts for choosing hyper-parameters, annotated like the test split; evaluation.split=dev judges them",
        ge=0,
    )
    candidates: int = _field(4, "images per prompt", ge=2, why="to form same-prompt pairs")
    seed: int = _field(1, "seed of prompts, images and annotators; independent of run.seed", ge=0)


class DataSection(Section):
    """Annotated images in the on-disk format of zr_ray.data."""

    path: Path | None = _field(
        None, "folder of the annotated data set; null writes the simulated rubric world into the run folder"
    )
    world: WorldSection = Field(default_factory=WorldSection)


class WorkerSection(Section):
    """What one kind of worker asks Ray for."""

    workers: int = _field(1, "number of actors", ge=1)
    cpus: float = _field(1.0, "CPU cores reserved per actor", ge=0)
    gpus: float = _field(0.0, "GPUs reserved per actor; a fraction lets actors share one GPU", ge=0)
    threads: int = _field(
        2, "OMP threads per actor; phases alternate, so both kinds may use all cores (2 in the reference machine)", ge=1
    )
    dtype: Dtype = _field("float32", "dtype the engine computes in; float32 on CPU, bfloat16 on GPUs")

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

    max_new_tokens: int = _field(
        32,
        "length limit of one output, tokens; chains of the simulated world have at most 19 words, marker and score"
        " follow",
        ge=2,
    )
    temperature: float = _field(1.0, "sampling temperature; only 1.0 keeps rollout log-probs equal to the policy's")
    max_num_seqs: int = _field(256, "sequences one engine decodes at the same time", ge=1)
    max_batched_tokens: int = _field(8192, "tokens one engine step may process, prompt and decode together", ge=256)
    max_model_len: int | None = _field(
        None, "longest question and output together, tokens; null: the model's own limit", ge=32
    )
    enforce_eager: bool = _field(
        True, "no CUDA graphs or compilation; false pays a longer start for faster decoding on GPUs"
    )
    kv_cache_gib: float = _field(
        1.0, "key-value cache per engine, GiB (CPU engines; GPU engines use what is free)", gt=0
    )
    start_deadline_s: float = _field(
        300.0, "seconds an engine may take to start; multi-process vLLM took 28 s on 2 cores", gt=0
    )
    deadline_s: float = _field(600.0, "seconds one step's rollouts or one evaluation batch may take", gt=0)

    @field_validator("temperature")
    @classmethod
    def _on_policy(cls, temperature: float) -> float:
        if temperature != 1.0:
            raise ValueError(
                f"must be 1.0, got {temperature}: any other temperature samples from another distribution than the one"
                " the learner's log-probs describe, and importance ratios stop being exact"
            )
        return temperature


class LearnerSection(WorkerSection):
    """DeepSpeed ranks, hosted by Ray Train."""

    zero_stage: int = _field(1, "ZeRO stage: 0 none, 1 optimizer, 2 + gradients, 3 + parameters sharded", ge=0, le=3)
    lr: float = _field(
        2e-4, "peak learning rate of AdamW; 2e-4 for the built-in judge, 1e-6 to 1e-5 for billions of parameters", gt=0
    )
    min_lr_frac: float = _field(0.1, "learning rate at the end of the cosine, as a fraction of the peak", ge=0, le=1)
    warmup_steps: int = _field(5, "optimizer updates of linear warm-up", ge=0)
    weight_decay: float = _field(0.0, "AdamW weight decay", ge=0)
    betas: tuple[float, float] = _field((0.9, 0.95), "AdamW moment decays")
    grad_clip: float = _field(1.0, "largest global gradient norm; 0 switches clipping off", ge=0)
    max_tokens_per_microbatch: int = _field(
        8192, "padded text tokens of one forward; the only knob on activation memory", ge=1
    )
    freeze: tuple[str, ...] = _field((), "parameter-name prefixes that are not trained, for example model.visual")
    deadline_s: float = _field(
        600.0, "seconds one update or one collective may take before the step counts as hung", gt=0
    )

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"must both lie in [0, 1), got {list(betas)}")
        return betas

    @model_validator(mode="after")
    def _zero_stage_of_bf16(self) -> LearnerSection:
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError(
                "learner.zero_stage must be at least 1 with learner.dtype bfloat16, got 0: DeepSpeed 0.19.8 then takes"
                " a zero-gradient Adam step at start and a first update of 0.744 lr; use stage 1, which shards nothing"
                " on one rank"
            )
        return self


class GdsoSection(Section):
    """Algorithm 1 and Eq. (3)-(14)."""

    steps: int = _field(60, "training steps, all outer iterations together", ge=1)
    reference_refresh_steps: int = _field(
        20, "length of one outer iteration in steps; at its start the reference becomes the policy", ge=1
    )
    pairs_per_step: int = _field(48, "B: same-prompt pairs of one step; 2 sides x group_size outputs each", ge=1)
    group_size: int = _field(4, "G: outputs sampled per image and dimension", ge=2, why="for a group baseline")
    updates_per_rollout: int = _field(1, "K_gdso: optimizer updates on one step's rollouts; 1 is on-policy", ge=1)
    lambda_pointwise: float = _field(1.0, "weight of the pointwise reward, Eq. (13)", ge=0)
    lambda_pairwise: float = _field(1.0, "weight of the pairwise reward, Eq. (13)", ge=0)
    alpha_pointwise: float = _field(1.0, "weight of the pointwise loss L_CE, Eq. (14)", ge=0)
    alpha_pairwise: float = _field(0.5, "weight of the pairwise loss L_pw, Eq. (14)", ge=0)
    beta_kl: float = _field(0.01, "weight of KL(policy || reference), Eq. (4); 0 drops the reference model", ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = _field(
        "k3", "per-token KL estimator; k3 = exp(d) - d - 1 is unbiased and never negative"
    )
    clip_low: float = _field(0.2, "importance ratio is clipped below 1 - clip_low", ge=0, lt=1)
    clip_high: float = _field(0.2, "importance ratio is clipped above 1 + clip_high", ge=0)
    truncate_ratio: float = _field(2.0, "upper limit of the engine-mismatch weight learner / rollout", ge=1)
    advantage_eps: float = _field(1e-4, "added to the group's standard deviation, Eq. (3)", gt=0)
    advantage_normalisation: Literal["std", "none"] = _field(
        "std", "divide by the group's standard deviation (Eq. 3), or centre only"
    )
    ratio: Literal["token", "sequence"] = _field(
        "token", "importance ratio per token, or one geometric mean per output"
    )
    token_aggregation: Literal["sequence_mean", "token_mean", "fixed_length"] = _field(
        "sequence_mean",
        "average tokens per output first (GRPO), over all tokens of the batch (DAPO), or divide by"
        " rollout.max_new_tokens (Dr. GRPO)",
    )
    pointwise_target: Literal["hard", "two_hot", "gaussian"] = _field(
        "hard", "target of L_CE: the annotated label (Eq. 8), linear interpolation between bins, or DeQA's Gaussian"
    )
    gaussian_std: float = _field(
        0.5, "standard deviation of the Gaussian target, rubric points; about one annotator's noise", gt=0
    )
    score_from: Literal["expectation", "parsed"] = _field(
        "expectation", "rewards from mu of the distribution, or from the sampled label (the paper's ablation)"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> GdsoSection:
        if self.lambda_pointwise + self.lambda_pairwise + self.alpha_pointwise + self.alpha_pairwise == 0:
            raise ValueError(
                "gdso.alpha_pointwise, alpha_pairwise, lambda_pointwise, lambda_pairwise must not all be 0: there is"
                " nothing to learn from"
            )
        return self


class WeightsSection(Section):
    """Learner -> rollout hand-off."""

    push_every_steps: int = _field(1, "steps between pushes; above 1 the rollouts in between are off-policy", ge=1)
    bucket_mib: int = _field(64, "size of one bucket on the way, MiB; two buckets are in flight", ge=1)
    tolerance: float | None = _field(
        None,
        f"largest probe log-prob difference after a push, nats; null: {FP32_SYNC_TOLERANCE:g} in fp32,"
        f" {BF16_SYNC_TOLERANCE:g} in bf16",
        gt=0,
    )
    verify: bool = _field(True, "compare probe log-probs of engine and learner after every push")
    probe_tokens: int = _field(
        4, "greedy reasoning tokens of each probe question that are compared, beside its direct score", ge=1
    )

    def tolerance_for(self, rollout_dtype: str, learner_dtype: str) -> float:
        """`tolerance`, or the default for the dtypes in use; nats."""
        if self.tolerance is not None:
            return self.tolerance
        return FP32_SYNC_TOLERANCE if rollout_dtype == learner_dtype == "float32" else BF16_SYNC_TOLERANCE


class EvaluationSection(Section):
    """The held-out set, judged before, during and after training."""

    every_steps: int = _field(20, "steps between evaluations; 0: only before and after", ge=0)
    split: Literal["dev", "test"] = _field("test", "split that is judged")
    before: bool = _field(
        True, "judge the untrained judge first; false saves that time where its rows are known from elsewhere"
    )
    samples: int = _field(
        0,
        "traces per question: 0 one greedy trace, n sampled traces whose distributions are averaged (4 added 3 HPA"
        " points in prototypes)",
        ge=0,
    )
    bootstrap_resamples: int = _field(1000, "resamples over prompts for each 95 % interval", ge=20)
    items: int | None = _field(
        None,
        "evaluations during training judge only the first so many images; null: all. Before and after: always all",
        ge=2,
    )
    batch_items: int = _field(256, "images sent to the rollout actors at a time", ge=1)


class CheckpointSection(Section):
    """What a resumed run starts from."""

    every_steps: int = _field(20, "steps between checkpoints; one is always written after the last step", ge=1)
    keep: int = _field(2, "newest checkpoints that stay on disk", ge=1)


class TrainingConfig(Section):
    """What jobs that train a judge on annotated pairs share."""

    run: RunSection = Field(default_factory=RunSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    data: DataSection = Field(default_factory=DataSection)
    rollout: RolloutSection = Field(default_factory=RolloutSection)
    learner: LearnerSection = Field(default_factory=LearnerSection)
    weights: WeightsSection = Field(default_factory=WeightsSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)

    @property
    def sync_tolerance(self) -> float:
        """Largest probe difference that a push may leave; nats."""
        return self.weights.tolerance_for(self.rollout.dtype, self.learner.dtype)


class GdsoConfig(TrainingConfig):
    """Everything `jobs/gdso.py` can be told."""

    gdso: GdsoSection = Field(default_factory=GdsoSection)

    @model_validator(mode="after")
    def _sections_fit(self) -> GdsoConfig:
        pairs, ranks = self.gdso.pairs_per_step, self.learner.workers
        if pairs % ranks:
            fitting = [str(n) for n in (pairs - pairs % ranks, pairs + ranks - pairs % ranks) if n > 0]
            raise ValueError(
                f"gdso.pairs_per_step must be a multiple of learner.workers ({ranks}), so that every rank averages over"
                f" the same number of pairs, got {pairs}; write {' or '.join(fitting)}"
            )
        updates = self.gdso.steps * self.gdso.updates_per_rollout
        if self.learner.warmup_steps >= updates:
            raise ValueError(
                f"learner.warmup_steps must be below the run's {updates} optimizer updates, got"
                f" {self.learner.warmup_steps}"
            )
        longest, room = self.rollout.max_new_tokens, self.learner.max_tokens_per_microbatch
        if room < longest:
            raise ValueError(
                f"learner.max_tokens_per_microbatch must hold one output of rollout.max_new_tokens = {longest}, got"
                f" {room}"
            )
        if self.weights.push_every_steps > self.gdso.steps:
            raise ValueError(
                f"weights.push_every_steps must be at most gdso.steps ({self.gdso.steps}), got"
                f" {self.weights.push_every_steps}: the rollouts would never see an update"
            )
        if self.learner.gpus not in (0, 1):
            raise ValueError(
                f"learner.gpus must be 0 or 1, got {self.learner.gpus:g}: a DeepSpeed rank drives one whole GPU; "
                "raise learner.workers instead"
            )
        return self
