"""DeepSpeed and ranks, apart from what is trained: any module, a loss, an update, weights, checkpoints.

One update is any number of `backward` and one `apply`. A loss is already divided by GLOBAL denominators; the engine
multiplies by the number of ranks because DeepSpeed averages gradients over ranks. Nothing non-finite reaches the
optimizer: all ranks find out together and raise.
Left out on purpose: a learning-rate scheduler object. The rate is a function of the step, given to `apply`; nothing to
restore.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zr_ray.config.workers import LearnerSection
from zr_ray.errors import CheckpointError, NonFiniteError
from zr_ray.workers.operators import load_collective

REMEDY = "lower learner.lr or learner.grad_clip, or raise learner.warmup_steps"


class Ranks:
    """This process among the ranks of a run. Making one joins the process group; outside Ray Train it is a world of
    one."""

    def __init__(self, config: LearnerSection) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device()) if config.gpus > 0 else torch.device("cpu")
        if 0 < config.gpus < 1:  # the rest of the GPU is an engine's
            torch.cuda.set_per_process_memory_fraction(config.gpu_memory_frac or config.gpus)
        _prepare_process(config)  # DeepSpeed reads the accelerator from the environment while it is imported
        import deepspeed

        if config.gpus == 0:
            load_collective()  # DeepSpeed would, but behind a guard that a killed process leaves behind
        deepspeed.init_distributed("nccl" if config.gpus > 0 else "gloo", auto_mpi_discovery=False)
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, float64."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM)

    def reduce_max(self, value: float) -> float:
        """Maximum over ranks."""
        return self._reduce([value], torch.distributed.ReduceOp.MAX)[0]

    def _reduce(self, values: Sequence[float], op) -> list[float]:
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(tensor, op=op)
        return tensor.tolist()

    def all_finite(self, tensors: Sequence[Tensor]) -> bool:
        """Whether nothing on any rank is nan or infinite. All ranks call it."""
        bad = any(not bool(tensor.isfinite().all()) for tensor in tensors)
        return self.reduce_max(float(bad)) == 0.0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()


class Engine:
    """Owns one DeepSpeed engine around a module. Verbs: forward, backward, apply, named_weights, save, load."""

    def __init__(self, module: nn.Module, config: LearnerSection, ranks: Ranks) -> None:
        """module: its parameters with a gradient are trained with AdamW."""
        import deepspeed

        self.config, self.ranks = config, ranks
        optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            lr=config.lr,
            betas=tuple(config.betas),
            weight_decay=config.weight_decay,
            foreach=True,
        )
        self._deepspeed, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(config), dist_init_required=False
        )
        self._deepspeed.train()

    @property
    def module(self) -> nn.Module:
        """What was wrapped."""
        return self._deepspeed.module

    def forward(self, *inputs):
        """Outputs of the module, with gradient if that is on. Under ZeRO-3 every rank must call it."""
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor, counted: bool = True) -> None:
        """Add the gradient of a loss to those of the update. counted: False takes part in the collectives of ranks
        that have more micro-batches, with weight 0."""
        self._deepspeed.backward(loss * (float(self.ranks.world) if counted else 0.0), scale_wrt_gas=False)

    def apply(self, lr: float) -> dict[str, float]:
        """One optimizer step at learning rate `lr` with the accumulated gradients. Returns the gradient norm before
        clipping.

        Raises: NonFiniteError on all ranks, the weights as they were, if a gradient is not finite."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = lr
        if self.config.zero_stage in (0, 3) and not self.ranks.all_finite(self._gradients()):
            raise NonFiniteError(f"a gradient is not finite; {REMEDY}")
        self._deepspeed.step()  # stages 1 and 2 look themselves, and leave the weights alone
        norm = self._deepspeed.get_global_grad_norm()  # None where the engine does not compute one
        if getattr(self._deepspeed.optimizer, "overflow", False) or (norm is not None and not norm < float("inf")):
            raise NonFiniteError(f"the gradient norm is not finite; {REMEDY}")
        return {"learner/grad_norm": float(norm) if norm is not None else float("nan"), "learner/lr": lr}

    def _gradients(self) -> list[Tensor]:
        """What this rank holds of the accumulated gradients, under stages 0 and 3."""
        if self.config.zero_stage == 0:
            return [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.config.offload != "none":
            return [self._deepspeed.optimizer.grad_partitions_flat_buffer]
        held = self._deepspeed.optimizer.averaged_gradients
        return [gradient for group in held.values() for gradient in group or () if gradient is not None]

    def require_finite_weights(self) -> None:
        """Raises NonFiniteError on all ranks unless every weight is finite; each looks at what it holds."""
        # under ZeRO-3 a parameter is empty here and its shard is ds_tensor: no gathering for a look
        held = [getattr(p, "ds_tensor", p) for p in self.module.parameters() if p.requires_grad]
        if not self.ranks.all_finite([value.detach() for value in held]):
            raise NonFiniteError(f"the weights are not finite; {REMEDY}")

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the module, full tensor) of every parameter. Under ZeRO-3 every rank must exhaust it."""
        import deepspeed

        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                yield name, parameter.detach()

    def described_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the module, tensor of its whole shape without memory) of every parameter. Gathers nothing."""
        for name, parameter in self.module.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 `shape` is empty
            yield name, torch.empty(shape, dtype=parameter.dtype, device="meta")

    def save(self, folder: Path, state: dict) -> None:
        """Write weights, optimizer and `state` (ints, floats, strings, tensors) under `folder`. All ranks call it."""
        # no `latest` file: which checkpoint is the newest complete one is run/checkpoints.py's business
        self._deepspeed.save_checkpoint(str(folder), tag="deepspeed", client_state=state, save_latest=False)

    def load(self, folder: Path) -> dict:
        """Restore what `save` wrote and return `state`. Raises CheckpointError if the files are not what save
        writes."""
        from zr_ray.run.checkpoints import gate_deepspeed_files

        gate_deepspeed_files(folder / "deepspeed")  # DeepSpeed unpickles whatever it finds
        loaded, state = self._deepspeed.load_checkpoint(str(folder), tag="deepspeed")
        if loaded is None:
            raise CheckpointError(f"DeepSpeed could not load {folder}; resume from another checkpoint or start anew")
        return state


def _prepare_process(config: LearnerSection) -> None:
    """Environment DeepSpeed reads; defaults make a single process outside Ray Train a world of one."""
    defaults = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)  # Ray Train has set them already in a run
    if config.gpus == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(config.threads)


def _free_port() -> int:
    """A port nobody listens on: a fixed one would let one learner outside Ray Train per machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deepspeed_config(config: LearnerSection) -> dict:
    """What DeepSpeed is told, for an engine and for loading into shards."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # micro-batches are cut by tokens: their number differs from step to step
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": config.zero_stage} | _offloaded(config),
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "gradient_clipping": config.grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # keep torch's AdamW
        "steps_per_print": 10**9,  # the journal writes the step lines
        "wall_clock_breakdown": False,
    }


def _offloaded(config: LearnerSection) -> dict:
    """What DeepSpeed keeps in host memory; empty for nothing."""
    host = {"device": "cpu", "pin_memory": config.gpus > 0}
    optimizer = {"offload_optimizer": host} if config.offload != "none" else {}
    return optimizer | ({"offload_param": host} if config.offload == "parameters" else {})
