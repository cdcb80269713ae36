"""Learner -> rollout hand-off: versioned, in buckets, and proved after every push.

A push (`loops/push.py`) sends the learner's parameters under a new policy version. Two proofs follow, whatever the
transport: a checksum of what every engine read against what was sent, which tells stale, partial and broken weights in
any precision; and a few probe answers whose log-probs the learner recomputes, which tells mis-mapped weights. In fp32
on CPU the probe alone would do; in 16 bit it cannot see a small update. The transports are in `transports.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.weights import SyncTolerance
from zr_ray.errors import WeightSyncError
from zr_ray.records import Judgement

TAIL = 4
"""90 % of a probe's values may differ by so many times the mean's limit; an exponential tail has 2.3."""


class BucketWriter:
    """Packs (Hugging Face name, tensor) pairs, in order, into safetensors blobs of about `bucket_bytes` (one tensor at
    least), and gives each away when it is full."""

    def __init__(self, bucket_bytes: int, give: Callable[[bytes], object]) -> None:
        """give: what becomes of a bucket, for instance `ray.put`."""
        self.bucket_bytes, self._give = bucket_bytes, give
        self.written: list = []
        """What `give` returned, one a bucket."""
        self._bucket: dict[str, Tensor] = {}
        self._size = 0

    def over(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The stream as it is, copied while it passes; the last bucket leaves when it ends."""
        for name, tensor in named:
            # copied now: under ZeRO-3 the gathered tensor is gone when the next name is asked for
            value = tensor.detach().to("cpu").contiguous()
            nbytes = value.numel() * value.element_size()
            if self._size + nbytes > self.bucket_bytes:  # never inside a tensor: a reader needs it whole
                self._flush()
            self._bucket[name] = value
            self._size += nbytes
            yield name, tensor
        self._flush()

    def _flush(self) -> None:
        from safetensors.torch import save

        if self._bucket:
            self.written.append(self._give(save(self._bucket)))
        self._bucket, self._size = {}, 0


def make_buckets(named_weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> list[bytes]:
    """All buckets of a stream, as `BucketWriter` packs them, in memory."""
    writer = BucketWriter(bucket_bytes, lambda bucket: bucket)
    for _ in writer.over(named_weights):
        pass
    return writer.written


def read_buckets(handles: Iterable) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) pairs out of bucket blobs or Ray references to them, one bucket in memory at a time."""
    from safetensors.torch import load

    for handle in handles:
        if not isinstance(handle, bytes):
            import ray

            handle = ray.get(handle, timeout=300)  # s; no wait without a deadline
        yield from load(handle).items()


class Checksum:
    """Of named tensors, in any order: names, shapes, and a sample of their bits."""

    STRIDE = 61
    """Every so many values count: a lost or swapped bucket cannot hide, and a push of 9 B parameters costs tenths of a
    second. Prime, so that it walks through all columns."""

    def __init__(self) -> None:
        self._running, self.tensors = 0, 0

    def over(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The stream as it is, counted while it passes."""
        for name, tensor in named:
            flat = tensor.detach().reshape(-1)
            sample = flat[torch.arange(0, flat.numel(), self.STRIDE, device=flat.device)].cpu()
            head = f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode()
            # a sum: a bucket is read in the order of its file, which need not be the order of sending
            bits = zlib.crc32(sample.view(torch.uint8).numpy().tobytes(), zlib.crc32(head))
            self._running = (self._running + bits) % 2**32
            self.tensors += 1
            yield name, tensor

    @property
    def digest(self) -> str:
        """Number of tensors and 8 hex digits."""
        return f"{self.tensors}:{self._running:08x}"


@dataclass(frozen=True)
class Difference:
    """|engine - learner| over all sampled tokens and all label entries of some answers, nats; inf where something is
    not finite."""

    largest: float
    mean: float
    high: float
    """90 % quantile."""
    relative: float
    """Largest |engine - learner| / max(1, |learner|): fp32 rounds a log-prob of -8 eight times as coarsely as one of
    -1."""

    def metrics(self) -> dict[str, float]:
        """As `sync/*` of a step."""
        return {
            "sync/max_abs_diff": self.largest,
            "sync/mean_abs_diff": self.mean,
            "sync/p90_abs_diff": self.high,
            "sync/max_rel_diff": self.relative,
        }


def probe_difference(judgements: Sequence[Judgement], logprobs: Tensor, score_logprobs: Tensor) -> Difference:
    """How far engine and learner are apart.

    Args: judgements: N engine outputs. logprobs: [N, T] learner's log-probs of the same tokens. score_logprobs: [N, K].
    """
    found = []
    for i, judgement in enumerate(judgements):
        found.append((judgement.logprobs, logprobs[i, : len(judgement.logprobs)].float().cpu().numpy()))
        if judgement.score_logprobs is not None:
            found.append((judgement.score_logprobs, score_logprobs[i].float().cpu().numpy()))
    return _difference(found)


def _difference(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Difference:
    """found: (engine's log-probs, those they are compared with) of each answer."""
    engine, learner = (np.concatenate(side).astype(np.float64) for side in zip(*found, strict=True))
    values = np.abs(engine - learner)
    if not np.isfinite(values).all():
        return Difference(*4 * (float("inf"),))
    relative = values / np.maximum(1, np.abs(learner))
    return Difference(float(values.max()), float(values.mean()), float(np.quantile(values, 0.9)), float(relative.max()))


def answers_difference(proven: Sequence[Judgement], answers: Sequence[Judgement]) -> Difference:
    """How far two engines' log-probs are apart on the same greedy questions.

    Compared up to the first token at which they part: there, rounding must have decided between two tokens that were
    as good as equal. Scores are compared where the tokens before them are the same."""
    found = []
    for one, other in zip(proven, answers, strict=True):
        shared = min(len(one.token_ids), len(other.token_ids))
        parted = np.flatnonzero(one.token_ids[:shared] != other.token_ids[:shared])
        until = int(parted[0]) + 1 if len(parted) else shared
        found.append((other.logprobs[:until], one.logprobs[:until]))
        if not len(parted) and one.score_logprobs is not None and other.score_logprobs is not None:
            found.append((other.score_logprobs, one.score_logprobs))
    return _difference(found)


def held_problem(version: int, held: Sequence[int], sent: str, received: Sequence[str]) -> str:
    """What is wrong unless every engine holds `version` and read what was sent; else empty. sent, received:
    checksums."""
    if any(v != version for v in held):
        return (
            f"every rollout worker must hold policy version {version} after the push, they hold {list(held)}; restart"
            " the run with --resume"
        )
    wrong = [digest for digest in received if digest != sent]
    if wrong:
        return (
            f"every rollout worker must have read the weights of version {version} as they were sent (checksum {sent}),"
            f" {len(wrong)} of {len(received)} read {wrong[0]}; restart the run with --resume"
        )
    return ""


def check_probe(difference: Difference, tolerance: SyncTolerance, version: int) -> None:
    """Raise WeightSyncError unless the probe's log-probs agree with the learner's. `largest` counts each value's
    difference as a share of the log-prob where that is beyond -1."""
    measured = {"largest": difference.relative, "mean": difference.mean}[tolerance.statistic]
    allowed = tolerance.nats
    if tolerance.statistic == "mean" and difference.high > TAIL * tolerance.nats:
        # few values far off: one layer or one kind of token, which a mean over all would hide
        measured, allowed = difference.high, TAIL * tolerance.nats
    if not measured <= allowed:  # not `>`: nan must be refused, too
        raise WeightSyncError(
            f"after the push of version {version} engine and learner log-probs must agree within {allowed:g}, the"
            f" probe differs by {measured:g} ({tolerance.statistic}; in nats the largest {difference.largest:g}, 90 %"
            f" below {difference.high:g}): the engine holds stale or wrongly mapped weights, or computes in another"
            " precision; check rollout.dtype against learner.dtype, or set weights.tolerance if the difference is"
            " known and wanted"
        )
