"""Learner -> rollout hand-off: versioned, in buckets, and proved after every push.

A push (`loops/push.py`) sends the learner's parameters under a new policy version and then asks every rollout worker
for a few probe answers; the learner recomputes the log-probs of the same tokens. Stale, partial or mis-mapped weights
show up there, whatever the transport. A transport is anything with `send(buckets) -> handles`, whose handles
`read_buckets` can turn into tensors inside the engine: the Ray object store now; NCCL and CUDA-IPC go through vLLM's
native weight-transfer API behind the same call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from zr_ray.errors import WeightSyncError
from zr_ray.records import Judgement


class WeightTransport(Protocol):
    """Moves serialized buckets from the learner to where rollout workers can read them."""

    def send(self, buckets: Iterable[bytes]) -> list:
        """Handles, one per bucket, that `read_buckets` accepts on the other side."""


class ObjectStoreTransport:
    """Buckets through Ray's object store: one copy per node, shared by all workers on it."""

    def send(self, buckets: Iterable[bytes]) -> list:
        import ray

        return [ray.put(bucket) for bucket in buckets]


def make_buckets(named_weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[bytes]:
    """Pack (Hugging Face name, tensor) pairs, in order, into safetensors blobs of about `bucket_bytes` (one tensor at
    least)."""
    from safetensors.torch import save

    bucket: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named_weights:
        # copied now: under ZeRO-3 the gathered tensor is gone when the next name is asked for
        value = tensor.detach().to("cpu").contiguous()
        nbytes = value.numel() * value.element_size()
        if bucket and size + nbytes > bucket_bytes:  # never inside a tensor: a reader needs it whole
            yield save(bucket)
            bucket, size = {}, 0
        bucket[name] = value
        size += nbytes
    if bucket:
        yield save(bucket)


def read_buckets(handles: Iterable) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs out of bucket blobs or Ray references to them, one bucket in memory at a time."""
    from safetensors.torch import load

    for handle in handles:
        if not isinstance(handle, bytes):
            import ray

            handle = ray.get(handle, timeout=300)  # s; no wait without a deadline
        yield from load(handle).items()


def logprob_difference(judgements: Sequence[Judgement], logprobs: Tensor, score_logprobs: Tensor) -> float:
    """Largest |engine - learner| over all sampled tokens and all label entries.

    Args: judgements: N engine outputs. logprobs: [N, T] learner's log-probs of the same tokens. score_logprobs: [N, K].
    Returns: nats; inf if anything is not finite."""
    worst = 0.0
    for i, judgement in enumerate(judgements):
        differences = [np.abs(judgement.logprobs - logprobs[i, : len(judgement.logprobs)].float().cpu().numpy())]
        if judgement.score_logprobs is not None:
            differences.append(np.abs(judgement.score_logprobs - score_logprobs[i].float().cpu().numpy()))
        largest = float(np.concatenate(differences).max())  # max of an array with nan is nan, caught below
        worst = max(worst, largest if np.isfinite(largest) else float("inf"))
    return worst


def answers_difference(proven: Sequence[Judgement], answers: Sequence[Judgement]) -> float:
    """Largest difference between two engines' log-probs on the same greedy questions.

    Compared up to the first token at which they part: there, rounding must have decided between two tokens that were
    as good as equal. Scores are compared where the tokens before them are the same.
    Returns: nats; inf if anything is not finite."""
    worst = 0.0
    for one, other in zip(proven, answers, strict=True):
        shared = min(len(one.token_ids), len(other.token_ids))
        parted = np.flatnonzero(one.token_ids[:shared] != other.token_ids[:shared])
        until = int(parted[0]) + 1 if len(parted) else shared
        differences = [np.abs(one.logprobs[:until] - other.logprobs[:until])]
        if not len(parted) and one.score_logprobs is not None and other.score_logprobs is not None:
            differences.append(np.abs(one.score_logprobs - other.score_logprobs))
        largest = float(np.concatenate(differences).max(initial=0.0))
        worst = max(worst, largest if np.isfinite(largest) else float("inf"))
    return worst


def check_probe(difference: float, tolerance: float, version: int, held: Sequence[int]) -> None:
    """Raise WeightSyncError unless every engine holds `version` and its log-probs agree with the learner's."""
    if any(v != version for v in held):
        raise WeightSyncError(
            f"every rollout worker must hold policy version {version} after the push, they hold {list(held)}; restart"
            " the run with --resume"
        )
    if not difference <= tolerance:  # not `>`: nan must be refused, too
        raise WeightSyncError(
            f"after the push of version {version} engine and learner log-probs must agree within {tolerance:g}, the"
            f" probe differs by {difference:g}: the engine holds stale or wrongly mapped weights, or computes in"
            " another precision; check rollout.dtype against learner.dtype, or set weights.tolerance if the difference"
            " is known and wanted"
        )
