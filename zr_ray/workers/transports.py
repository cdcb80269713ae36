"""Ways of a learner's weights to the engines, as rank 0 goes them (`weights.transport`).

    object_store   buckets in host memory, one copy a node; an engine reads them when it comes to it
    broadcast      vLLM's weight transfer over NCCL, over gloo on CPU: learner and all processes of all engines are one
                   group, a bucket goes to all at once, and the learner waits until the slowest engine is free
    ipc            vLLM's weight transfer over CUDA IPC: the one engine opens buckets on the GPU that both share

Whatever the way, an engine counts what it read, and is asked the probe's questions (`loops/push.py`). A transfer that
breaks off costs the engines that were in it: they are started again and read the copy in the object store, and the next
push makes a new group. So does a push that finds an engine without the group, since it was lost in between.
Left out on purpose: more than one sender. Rank 0 gathers bucket by bucket and never holds the model.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from zr_ray.config.weights import WeightsSection
from zr_ray.config.workers import RolloutSection
from zr_ray.errors import DeadlineError, ZrRayError
from zr_ray.models.engine_limits import tensor_parallel
from zr_ray.run.observe import duration, say, wait_for
from zr_ray.workers.recovery import Recovery
from zr_ray.workers.weights import BucketWriter, Checksum

if TYPE_CHECKING:
    from zr_ray.workers.learner import Learner

MIB = 2**20
GRACE_S = 30.0
"""After rollout.deadline_s, in which gloo's own deadline ends a transfer that waits for an engine."""


@dataclass(frozen=True)
class Sent:
    """Weights that are on their way."""

    references: list
    """Ray's, to every engine's answer: the version it holds."""
    handles: list
    """Of buckets in the object store, for engines that must read them later; empty where no copy is kept."""


class WeightTransport(Protocol):
    """Moves a learner's weights into the engines."""

    def prepare(self, recovery: Recovery) -> None:
        """On rank 0, before a push, while the last version is still current: bring back what is not there."""

    def send(self, learner: Learner, version: int, sent: Checksum) -> Sent:
        """On rank 0: all weights, counted by `sent`, to all engines. A collective under ZeRO-3, which the other ranks
        join by walking through `learner.named_weights()`."""


def transport_of(workers: Sequence, weights: WeightsSection, rollout: RolloutSection) -> WeightTransport:
    """The transport of a run. workers: all its rollout actors."""
    if weights.transport == "object_store":
        return ObjectStoreTransport(workers, weights.bucket_mib * MIB)
    return (IpcTransport if weights.transport == "ipc" else BroadcastTransport)(workers, weights, rollout)


class ObjectStoreTransport:
    """Buckets through Ray's object store: one copy per node, shared by all workers on it."""

    def __init__(self, workers: Sequence, bucket_bytes: int) -> None:
        self.workers, self.bucket_bytes = list(workers), bucket_bytes

    def prepare(self, recovery: Recovery) -> None:
        """Nothing: an engine that is lost gets the same buckets later."""

    def send(self, learner: Learner, version: int, sent: Checksum) -> Sent:
        """Put the buckets, then tell the engines."""
        import ray

        writer = BucketWriter(self.bucket_bytes, ray.put)
        for _ in writer.over(sent.over(learner.named_weights())):
            pass  # lazy: parameters are gathered while they are walked through
        return Sent([w.update_weights.remote(version, writer.written) for w in self.workers], writer.written)


class _Stream:
    """Weights as vLLM's senders read them (`WeightSource`): what is coming, then the tensors."""

    def __init__(self) -> None:
        self.described: list[tuple[str, Tensor]] = []
        self.named: Iterator[tuple[str, Tensor]] = iter(())

    def metadata(self) -> list:
        """Names, types and whole shapes, without gathering."""
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in self.described]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.named


class _Engines:
    """vLLM's control plane, spoken to independent engines: each has its own ranks of the group, where vLLM's client
    gives all the same. An update is one call of an engine, so that no question of another rank comes between its parts;
    nobody waits here for its answer."""

    def __init__(self, workers: Sequence, parts: int, deadline_s: float) -> None:
        """parts: processes of one engine."""
        self.workers, self.parts, self.deadline_s = list(workers), parts, deadline_s
        self.group, self.version = "", -1
        self.references: list = []

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        """All engines enter the group, behind rank 0, which sends."""
        joins = []
        for n, worker in enumerate(self.workers):
            own = {"rank_offset": 1 + n * self.parts} if "rank_offset" in init_info else {}
            joins.append(worker.join_transfer.remote(self.group, init_info | own))
        wait_for(joins, self.deadline_s, f"{len(self.workers)} engine(s) to join the group of the weight transfer")

    def start_weight_update(self) -> None:
        """Part of the one call."""

    def update_weights(self, update_info: dict) -> None:
        """The one call."""
        self.references = [w.receive_weights.remote(self.version, update_info) for w in self.workers]

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Part of the one call."""


class _PartByPart(_Engines):
    """An update in several calls, each waited for: the sender writes the next bucket over the last one."""

    def start_weight_update(self) -> None:
        self._wait([w.open_update.remote() for w in self.workers], "begin")

    def update_weights(self, update_info: dict) -> None:
        self._wait([w.take_part.remote(update_info) for w in self.workers], "take a part of")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.references = [w.close_update.remote(self.version) for w in self.workers]

    def _wait(self, references: list, what: str) -> None:
        wait_for(references, self.deadline_s, f"an engine to {what} the push of weights {self.version}")


class BroadcastTransport:
    """One group of the learner's rank 0 and all processes of all engines."""

    engines = _Engines

    def __init__(self, workers: Sequence, weights: WeightsSection, rollout: RolloutSection) -> None:
        self.workers, self.weights, self.rollout = list(workers), weights, rollout
        self.deadline_s = rollout.deadline_s
        self._client = self.engines(workers, tensor_parallel(rollout), self.deadline_s)
        self._stream, self._tell = _Stream(), say
        self._sender: Any = None

    def prepare(self, recovery: Recovery) -> None:
        """Leave the group if an engine is not in it any more. One that is on its way back is waited for."""
        asked = [
            (w, partial(w.transfer_group.options(max_task_retries=-1).remote)) for w in self.workers
        ]  # Ray holds these calls until a lost actor is up again
        self._tell = recovery.tell
        groups = recovery.settle(asked, self.deadline_s, "engines to say which weight-transfer group they are in")
        if any(group != self._client.group for group in groups):
            self._leave()

    def send(self, learner: Learner, version: int, sent: Checksum) -> Sent:
        """Make the group if there is none, and broadcast; where that breaks off, engines read the copy."""
        import ray

        writer = BucketWriter(self.weights.bucket_mib * MIB, ray.put)
        counted = sent.over(learner.named_weights())
        stream = writer.over(counted) if self.weights.keep_copy else counted
        self._stream.described, self._stream.named = learner.described_weights(), _own(stream)
        self._client.version, self._client.references = version, []
        broken = self._attempt(learner)
        if broken:
            then = "engines read the copy" if self.weights.keep_copy else "there is no copy (weights.keep_copy)"
            self._tell(f"the transfer of weights {version} broke off ({broken}); {then}")
            self._leave()
            for _ in stream:  # the other ranks gather with this one, and the copy lacks the rest
                pass
        references = self._client.references or [w.update_weights.remote(version, writer.written) for w in self.workers]
        if writer.written:
            for worker in self.workers:
                worker.keep_weights.remote(version, writer.written)
        return Sent(references, writer.written)

    def _attempt(self, learner: Learner) -> str:
        """Send what the stream gives. Returns: what broke it off, empty if nothing did.

        Raises: DeadlineError where it neither ends nor breaks off: gloo has a deadline, NCCL waits for a dead engine
        for ever. Nothing is mended then, the collective still runs."""
        from ray.exceptions import RayError

        broken, raised = "", list[Exception]()

        def run() -> None:
            nonlocal broken
            try:
                if learner.device.type == "cuda":
                    torch.cuda.set_device(learner.device)  # is a thread's own
                if self._sender is None:
                    self._client.group = uuid.uuid4().hex
                    self._sender = self._connect(learner)
                self._sender.send_weights()
            except (RuntimeError, RayError, ZrRayError) as error:
                broken = _first_line(error)  # not the error: its frames would keep the group open for those who wait
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=run, name="weight transfer", daemon=True)
        thread.start()
        thread.join(self.deadline_s + GRACE_S)
        if thread.is_alive():
            raise DeadlineError(
                f"the transfer of weights {self._client.version} to {len(self.workers)} engine(s) did not finish in"
                f" {duration(self.deadline_s + GRACE_S)}; look at the engines' logs in the Ray dashboard, then continue"
                " with --resume"
            )
        if raised:
            raise raised[0]
        return broken

    def _connect(self, learner: Learner):
        from ray.util import get_node_ip_address
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        from zr_ray.workers.transfer_engines import GlooTrainerInit

        world = 1 + len(self.workers) * tensor_parallel(self.rollout)
        address = get_node_ip_address()
        told = dict(rank=0, master_address=address, master_port=_free_port(address), world_size=world)
        told |= dict(packed_buffer_size_bytes=self.weights.bucket_mib * MIB)
        on_gpu = self.rollout.gpus > 0
        made = NCCLTrainerInitInfo(**told) if on_gpu else GlooTrainerInit(**told, timeout_s=self.deadline_s)
        return WeightTransferTrainerFactory.trainer_init(made, client=self._client, source=self._stream)

    def _leave(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()
        self._sender, self._client.group = None, ""


class IpcTransport(BroadcastTransport):
    """The learner's buckets, opened by the engine on the same GPU. There is no group; an engine that was started again
    must be told once more how buckets come."""

    engines = _PartByPart

    def _connect(self, learner: Learner):
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        largest = max(value.numel() * value.element_size() for _, value in learner.described_weights())
        size = max(self.weights.bucket_mib * MIB, largest)  # a tensor must fit
        made = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)
        return WeightTransferTrainerFactory.trainer_init(made, client=self._client, source=self._stream)


def _own(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The stream, each tensor in memory of its own: what was gathered is gone when the next name is asked for, and a
    sender packs several."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # senders read on streams of their own; the last update must be in
    for name, value in named:
        yield name, value.detach().clone()


def _free_port(address: str) -> int:
    """A port nobody listens on."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        return listener.getsockname()[1]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
