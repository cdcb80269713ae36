"""What of vLLM's weight transfer (`vllm.distributed.weight_transfer`) is ours: engines that count what they read, and a
broadcast over gloo for engines on CPU.

    broadcast   vLLM's NCCL engine on GPUs, `GlooEngine` on CPU: the same calls, ranks and buckets
    ipc         vLLM's CUDA IPC engine: an engine opens the learner's buckets on the GPU that both share

vLLM gives the tensors it received to the model and to nobody else; `Counted` listens there, so that a push is proved by
the checksum of what every process of an engine read, as with the object store. Importing this module registers the
engines, which must happen in every process of an engine: vLLM imports it for `TransferVerbs` (`worker_extension_cls`).
Left out on purpose: the sender's side of NCCL and IPC, which is vLLM's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors, unpack_tensor

from zr_ray.models.hub_layout import has_tied_head, with_head
from zr_ray.workers.weights import Checksum

GLOO, NCCL, IPC = "zr_ray_gloo", "zr_ray_nccl", "zr_ray_ipc"
"""Names of the engines in vLLM's registry."""


class _Listener:
    """Stands before a model while weights come in: counts them, and gives a tied output layer its tensor."""

    def __init__(self, model, read: Checksum, tied: bool) -> None:
        self._model, self._read, self._tied = model, read, tied

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """vLLM's own loader, which maps the hub's names to fused layers."""
        return self._model.load_weights(with_head(self._read.over(weights), self._tied))


class Counted:
    """Beside one of vLLM's engines: what it read since the last start of an update, as a checksum."""

    model: Any
    model_config: Any

    def start_weight_update(self) -> None:
        """Begin an update, and its checksum."""
        self._read = Checksum()
        super().start_weight_update()

    def receive_weights(self, update_info) -> None:
        """Receive one part of an update."""
        model = self.model
        self.model = _Listener(model, self._read, has_tied_head(Path(self.model_config.model)))
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model

    @property
    def digest(self) -> str:
        """`Checksum.digest` of the last update."""
        return self._read.digest


class NcclEngine(Counted, NCCLWeightTransferEngine):
    """vLLM's broadcast over NCCL, counted."""


class IpcEngine(Counted, IPCWeightTransferEngine):
    """vLLM's CUDA IPC, counted."""


class GlooGroup:
    """What vLLM's broadcast needs of a communicator, over TCP between processes on CPU."""

    def __init__(self, address: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        """Waits for all `world` ranks. timeout_s: of this, and of every broadcast."""
        self._group = stateless_init_torch_distributed_process_group(
            address, port, rank, world, "gloo", timeout=timedelta(seconds=timeout_s)
        )

    def broadcast(self, tensor: Tensor, src: int) -> None:
        """Send, or fill, a tensor of bytes. Raises RuntimeError if a rank is gone or does not come in time."""
        self._group.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        """Close the connections; a rank that waits for this one gets an error."""
        self._group.shutdown()
        self._group = None  # the sockets close with the last reference


@dataclass(kw_only=True)
class GlooInit(NCCLWeightTransferInitInfo):
    """What an engine needs to join."""

    timeout_s: float = 600.0


class GlooReceiver(NCCLWeightTransferEngine):
    """vLLM's broadcast with another communicator, and without CUDA streams."""

    init_info_cls = GlooInit

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the group of the sender, at this process's own rank."""
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        rank = init_info.rank_offset + self.parallel_config.rank
        self.model_update_group = GlooGroup(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.timeout_s
        )

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive buckets and load them, one in memory at a time; cut where `pack_tensors` cuts."""
        bucket: list[tuple[str, list[int], torch.dtype, int]] = []
        held, last = 0, len(update_info.names) - 1
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        for n, (name, dtype_name, shape) in enumerate(described):
            dtype = getattr(torch, dtype_name)
            bucket.append((name, shape, dtype, prod(shape) * dtype.itemsize))
            held += bucket[-1][-1]
            if held > self.packed_buffer_size_bytes or n == last:
                packed = torch.empty(held, dtype=torch.uint8)
                self.model_update_group.broadcast(packed, src=0)
                names, shapes, dtypes, sizes = (list(column) for column in zip(*bucket, strict=True))
                self.model.load_weights(unpack_tensor(packed, names, shapes, dtypes, sizes))
                bucket, held = [], 0


class GlooEngine(Counted, GlooReceiver):
    """Broadcast over gloo, counted."""


@dataclass
class GlooTrainerInit(NCCLTrainerInitInfo):
    """What the sender needs."""

    backend: ClassVar[str] = GLOO
    timeout_s: float = 600.0


class GlooTrainer(NCCLTrainerWeightTransferEngine):
    """The sender of vLLM's broadcast with another communicator; the round of an update is vLLM's own."""

    init_info_cls = GlooTrainerInit

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInit, *, client, source=None) -> GlooTrainer:
        """Open the group as rank 0 while the engines join it."""
        size = init_info.packed_buffer_size_bytes
        engine = cls(client=client, source=source, is_sender=True, packed_buffer_size_bytes=size)
        address, port, world = init_info.master_address, init_info.master_port, init_info.world_size
        told = GlooInit(
            master_address=address,
            master_port=port,
            rank_offset=1,
            world_size=world,
            packed=True,
            packed_buffer_size_bytes=size,
            timeout_s=init_info.timeout_s,
        )
        with ThreadPoolExecutor(max_workers=1) as thread:
            joined = thread.submit(client.init_weight_transfer_engine, worker_init_payload(told))
            engine.model_update_group = GlooGroup(address, port, 0, world, init_info.timeout_s)
            joined.result()
        return engine

    def _broadcast(self, source, meta) -> None:
        pairs = self._checked_iter(source, meta)
        while (bucket := pack_tensors(pairs, itemgetter(1), self.packed_buffer_size_bytes)) is not None:
            self.model_update_group.broadcast(bucket.packed_tensor, src=0)


class TransferVerbs:
    """Calls that vLLM adds to every process of an engine."""

    weight_transfer_engine: Counted

    def transferred(self) -> str:
        """Checksum of what this process read in the last update."""
        return self.weight_transfer_engine.digest


WeightTransferEngineFactory.register_engine(GLOO, GlooEngine)
WeightTransferEngineFactory.register_engine(NCCL, NcclEngine)
WeightTransferEngineFactory.register_engine(IPC, IpcEngine)
WeightTransferTrainerFactory.register_engine(GLOO, GlooTrainer)
