"""The hand-off of weights from learner to engines: the way they take, and the proof that they came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zr_ray.config.sections import Section, field
from zr_ray.config.workers import LearnerSection, RolloutSection, WorkerSection

Transport = Literal["object_store", "broadcast", "ipc"]
FP32_SYNC_TOLERANCE = 3e-5
"""Largest log-prob difference engine - learner after a push in fp32 on CPU, as a share of log-probs beyond -1; measured
(vLLM 0.32, transformers 5.19) 2.5e-6 with the built-in judges, 4e-6 Qwen3-VL, 9.5e-6 Qwen2.5-VL at tiny width."""
GPU_FP32_SYNC_TOLERANCE = 5e-3
"""Mean difference in fp32 on GPUs; measured 1.2e-3 (largest 5e-2) on an H200, whose matrix products round."""
BF16_SYNC_TOLERANCE = 3e-2
"""Mean difference when engine or learner computes in bf16, nats; measured 9e-3 on an H200 (largest .35, 3.8 % of values
above .05), 3e-3 to 1.5e-2 on CPU."""


@dataclass(frozen=True)
class SyncTolerance:
    """What of a probe is compared, and with what."""

    statistic: Literal["largest", "mean"]
    """Over all log-probs of a probe; the largest as a share of the log-prob where that is beyond -1."""
    nats: float


class WeightsSection(Section):
    """Learner -> rollout hand-off."""

    transport: Transport = field(
        "object_store",
        "how weights reach the engines: Ray's object_store; broadcast to all processes of all engines (NCCL, on CPU"
        " gloo), each on GPUs of its own; ipc, on the one GPU that engine and learner share. The last two go through"
        " vLLM's weight transfer; on GPUs they have not run yet",
    )
    keep_copy: bool = field(
        True,
        "a copy of broadcast or ipc weights in the object store, for engines that are lost before the next push; false:"
        " a push takes no longer than the transfer, and such a loss ends the run, to be resumed",
    )
    push_every_steps: int = field(1, "steps between pushes; above 1 the rollouts in between are off-policy", ge=1)
    bucket_mib: int = field(64, "size of one bucket on the way, MiB; two buckets are in flight", ge=1)
    tolerance: float | None = field(
        None,
        "probe log-prob difference allowed after a push, nats: the largest in fp32 on CPU (of log-probs beyond -1 that"
        f" share), the mean elsewhere, where rounding makes single values differ; null: {FP32_SYNC_TOLERANCE:g} in fp32"
        f" on CPU, {GPU_FP32_SYNC_TOLERANCE:g} in fp32 on GPUs, {BF16_SYNC_TOLERANCE:g} in bf16",
        gt=0,
    )
    verify: bool = field(True, "compare probe log-probs of engine and learner after every push")
    probe_tokens: int = field(
        4, "greedy reasoning tokens of each probe question that are compared, beside its direct score", ge=1
    )

    def tolerance_for(self, rollout: WorkerSection, learner: WorkerSection) -> SyncTolerance:
        """`tolerance`, or the default for where and in what the two compute."""
        single = rollout.dtype == learner.dtype == "float32"
        if single and rollout.gpus == learner.gpus == 0:
            return SyncTolerance("largest", self.tolerance or FP32_SYNC_TOLERANCE)
        default = GPU_FP32_SYNC_TOLERANCE if single else BF16_SYNC_TOLERANCE
        return SyncTolerance("mean", self.tolerance or default)

    def check(self, rollout: RolloutSection, learner: LearnerSection) -> None:
        """Raises ValueError where these engines and learners cannot be reached by `transport`."""
        shared = shares_gpu(rollout, learner)
        if self.transport == "ipc" and not (shared and rollout.workers == 1):
            raise ValueError(
                "weights.transport ipc needs one engine and one learner that share a GPU (learner.gpus=.5"
                f" rollout.gpus=.5), got learner.gpus {learner.gpus:g}, rollout.gpus {rollout.gpus:g},"
                f" rollout.workers {rollout.workers}; take broadcast or object_store"
            )
        whole = all(gpus == 0 for gpus in (rollout.gpus, learner.gpus)) or min(rollout.gpus, learner.gpus) >= 1
        if self.transport == "broadcast" and not whole:
            raise ValueError(
                "weights.transport broadcast needs engines and learners on GPUs of their own, or all on CPU, got"
                f" learner.gpus {learner.gpus:g}, rollout.gpus {rollout.gpus:g}: NCCL refuses two processes on one GPU;"
                f" take {'ipc' if shared and rollout.workers == 1 else 'object_store'}"
            )
        if rollout.sleep and not shared:
            raise ValueError(
                "rollout.sleep makes room for a learner on the same GPU: it needs learner.gpus and rollout.gpus between"
                f" 0 and 1, got {learner.gpus:g} and {rollout.gpus:g}"
            )
        if rollout.sleep and self.push_every_steps > 1:
            raise ValueError(
                f"weights.push_every_steps must be 1 with rollout.sleep, got {self.push_every_steps}: an engine wakes"
                " up with a push"
            )


def shares_gpu(rollout: WorkerSection, learner: WorkerSection) -> bool:
    """Whether an engine and a learner have parts of one GPU."""
    return 0 < rollout.gpus < 1 and 0 < learner.gpus < 1


class Pushes:
    """Mixin of configurations with the sections rollout, learner and weights: what follows from all three."""

    if TYPE_CHECKING:  # of the configuration that is mixed with; pydantic would take them for fields of its own
        rollout: RolloutSection
        learner: LearnerSection
        weights: WeightsSection

    @property
    def sync_tolerance(self) -> SyncTolerance:
        """Probe difference that a push may leave."""
        return self.weights.tolerance_for(self.rollout, self.learner)

    @property
    def sleeps(self) -> bool:
        """Whether engines give their GPU to the learner while it trains: `rollout.sleep`, or its default."""
        if self.rollout.sleep is None:
            return shares_gpu(self.rollout, self.learner) and self.weights.push_every_steps == 1
        return self.rollout.sleep
