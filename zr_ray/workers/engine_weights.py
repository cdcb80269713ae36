"""The weights inside one vLLM engine: their version, the ways they come in, and what proves them.

    load                        buckets out of the object store, into any engine at any time
    join, receive               one call of vLLM's weight transfer, in a broadcast group with the learner
    open, take ..., close       the same in parts, for buckets that the next one overwrites (CUDA IPC)

A transfer that fails half-way leaves an engine with parts of two models, which nothing mends: its process ends, Ray
starts another, and that one loads buckets (`recovery.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from zr_ray.config.weights import Transport
from zr_ray.config.workers import RolloutSection
from zr_ray.errors import RolloutError
from zr_ray.models.engine_limits import tensor_parallel
from zr_ray.models.hub_layout import has_tied_head, save_sharded, with_head
from zr_ray.workers.experts import forget_kernels

if TYPE_CHECKING:
    from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")


def transfer_arguments(config: RolloutSection, transport: Transport) -> dict:
    """What an engine is started with so that weights can come in by `transport`; empty for the object store."""
    if transport == "object_store":
        return {}
    backend = "zr_ray_ipc" if transport == "ipc" else "zr_ray_nccl" if config.gpus > 0 else "zr_ray_gloo"
    return {
        "weight_transfer_config": {"backend": backend},
        "worker_extension_cls": "zr_ray.workers.transfer_engines.TransferVerbs",
    }


class EngineWeights:
    """Of one engine."""

    def __init__(self, llm, folder: Path, config: RolloutSection) -> None:
        """llm: vLLM's `LLM`. folder: the judge it was started from."""
        self._llm, self._folder, self._config = llm, folder, config
        # nobody has pushed weights yet; the folder's own weights are never rolled out unverified
        self.version = -1
        self.checksum = ""
        """Digest of what the last push read (`weights.Checksum`)."""
        self.handles: list = []
        """Where a replacement of another worker finds these weights."""
        self.group = ""
        """Broadcast group that this engine is in; empty for none."""
        self._asleep = False
        self._push_folder: TemporaryDirectory | None = None

    # ---- out of the object store ----

    def load(self, version: int, buckets: Iterable) -> None:
        """Replace the weights by those of `buckets`, as `RolloutWorker.update_weights` takes them."""
        from zr_ray.workers.weights import Checksum, read_buckets

        self._wake("weights")
        buckets, read = list(buckets), Checksum()
        self.reload(read.over(read_buckets(buckets)), through_files=tensor_parallel(self._config) > 1)
        self._settle(version, read.digest)
        self.handles = buckets

    def reload(self, named: Iterable[tuple[str, Tensor]], through_files: bool) -> None:
        """Load a stream of named tensors. through_files: for an engine of several processes, which an iterator cannot
        reach: each reads its part from files in shared memory, one copy a node while it lasts."""
        # vLLM's own loader maps Hugging Face names to fused layers, so nothing here knows the architecture
        named = with_head(named, has_tied_head(self._folder))
        self._forget_kernels()
        if not through_files:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
            return
        if self._push_folder is None:
            self._push_folder = self._without_weights()
        folder = Path(self._push_folder.name)
        save_sharded(named, folder)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        for path in folder.glob("*.safetensors*"):
            path.unlink()

    def _without_weights(self) -> TemporaryDirectory:
        """A folder in shared memory with all files of the judge but its weights. It stays as long as this worker: from
        the first push on vLLM looks there for the processor too."""
        made = TemporaryDirectory(prefix="zr_ray_push_", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        for path in self._folder.iterdir():
            if ".safetensors" not in path.name:
                (Path(made.name) / path.name).symlink_to(path.absolute())
        return made

    # ---- through vLLM's weight transfer ----

    def join(self, group: str, init_info: dict) -> None:
        """Enter a group, out of the old one. init_info: of vLLM's engine."""
        if self.group:
            self.group = ""
            self._llm.shutdown_weight_transfer_engine()
        self._llm.init_weight_transfer_engine({"init_info": init_info})
        self.group = group

    def receive(self, version: int, update_info: dict) -> None:
        """One whole update; no other call comes between its parts."""
        self.open()
        self.take(update_info)
        self.close(version)

    def open(self) -> None:
        """Begin an update. Until it is closed no answer comes from here."""
        self.version, self.handles = -1, []
        with self._whole_or_gone():
            self._wake("weights")
            self._forget_kernels()
            self._llm.start_weight_update()

    def take(self, update_info: dict) -> None:
        """Load one part. update_info: of vLLM's engine."""
        with self._whole_or_gone():
            self._llm.update_weights({"update_info": update_info})

    def close(self, version: int) -> None:
        """End an update that was `version`."""
        with self._whole_or_gone():
            self._llm.finish_weight_update()
            read = self._llm.collective_rpc("transferred")
            if len(set(read)) > 1:
                raise RolloutError(f"all processes of an engine must have read the same weights, they read {read}")
            self._settle(version, read[0])

    @contextmanager
    def _whole_or_gone(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            import ray

            if not ray.is_initialized():
                raise
            print(f"a weight transfer broke off, this engine ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # an error would leave the engine with the actor, and with parts of two models

    def _settle(self, version: int, checksum: str) -> None:
        """New weights are in: drop what the old ones computed."""
        self._wake("kv_cache")
        if not self._llm.reset_prefix_cache():
            raise RolloutError(
                "vLLM refused to drop its prefix cache after a weight push; requests must not be in flight"
            )
        self._llm.llm_engine.reset_encoder_cache()  # image features of the old vision tower
        self.version, self.checksum = version, checksum

    def _forget_kernels(self) -> None:
        if self._config.gpus == 0:
            self._llm.apply_model(forget_kernels)

    # ---- one GPU for engine and learner ----

    def sleep(self) -> None:
        """Give weights and cache back to the GPU; what comes next must be a push."""
        if self._config.sleep and not self._asleep:
            self.version, self.handles = -1, []
            self._llm.sleep(level=2)  # 2: the weights too, nothing is kept in host memory
            self._asleep = True

    def _wake(self, what: str) -> None:
        """Take back the memory of "weights", before a push, or of "kv_cache", the last, after it."""
        if self._asleep:
            self._llm.wake_up([what])
            self._asleep = what == "weights"
