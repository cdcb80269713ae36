"""Learner: one DeepSpeed engine around a judge. Knows rows and losses, not algorithms.

One update = any number of micro-batches (`accumulate`) and one optimiser step (`apply`). An objective maps the outputs
of a micro-batch to a loss that is already divided by the GLOBAL denominators; the learner multiplies by the number of
ranks because DeepSpeed averages gradients over ranks. So the update does not depend on how rows are spread over ranks
or micro-batches (tested).
Left out on purpose: a learning-rate scheduler object. The rate is a function of the step, given to `apply`; nothing to
restore.
"""

from __future__ import annotations

import copy
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.sections import LearnerSection
from zr_ray.errors import CheckpointError, ConfigError
from zr_ray.models.judge import JudgeOutputs, load_packed_judge
from zr_ray.models.packing import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Objective = Callable[[JudgeOutputs, list[int], Tensor | None], tuple[Tensor, dict[str, float]]]
"""(outputs of the micro-batch, indices of its units, reference log-probs [N, T] or None) -> (loss, metric sums)."""


@dataclass(frozen=True)
class UpdateStats:
    """What one accumulation over all micro-batches measured."""

    sums: dict[str, float]
    """Metric sums over this rank's micro-batches, as the objective returned them."""
    tokens: int
    """Packed tokens forwarded on this rank, padding excluded."""
    microbatches: int


class Learner:
    """Owns one DeepSpeed engine. Verbs: forward, accumulate, apply, named_weights, save, load, save_judge."""

    def __init__(self, judge: Path, config: LearnerSection, keep_reference: bool = False) -> None:
        self.config = config
        self.judge = Path(judge)
        self.device = torch.device("cuda", torch.cuda.current_device()) if config.gpus > 0 else torch.device("cpu")
        _prepare_process(config)
        import deepspeed

        deepspeed.init_distributed("nccl" if config.gpus > 0 else "gloo", auto_mpi_discovery=False)
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        module, self.text, self.packer = load_packed_judge(
            self.judge, torch.float32 if config.dtype == "float32" else torch.bfloat16
        )
        trainable = _freeze(module, config.freeze)
        self.reference = copy.deepcopy(module).requires_grad_(False).eval().to(self.device) if keep_reference else None
        optimizer = torch.optim.AdamW(
            trainable, lr=config.lr, betas=tuple(config.betas), weight_decay=config.weight_decay, foreach=True
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
        )
        self.engine.train()

    # ---- forward and backward ----

    def microbatches(self, units: Sequence[Sequence[Row]]) -> list[list[int]]:
        """Indices of units, longest first, in batches whose padded rectangles hold at most max_tokens_per_microbatch
        tokens (one unit at least)."""
        lengths = [max(self.packer.length(row, self.packer.image_tokens(row.image)) for row in unit) for unit in units]
        rows = [sum(self.packer.sequences(row) for row in unit) for unit in units]
        order = sorted(range(len(units)), key=lambda i: (-lengths[i], i))
        ends = cheapest_batches(
            [lengths[i] for i in order], [rows[i] for i in order], self.config.max_tokens_per_microbatch
        )
        return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.no_grad()
    def forward(self, rows: Sequence[Row]) -> JudgeOutputs:
        """Outputs for rows without gradient. Under ZeRO-3 every rank must call it."""
        was_training = self.engine.training
        outputs = self.engine(self.packer.pack(rows).to(self.device))
        self.engine.train(was_training)
        return outputs

    def accumulate(self, units: Sequence[Sequence[Row]], objective: Objective) -> UpdateStats:
        """Forward and backward over all units, micro-batch by micro-batch; gradients add up until `apply`."""
        batches = self.microbatches(units)
        rounds = int(self.reduce_max(float(len(batches))))
        sums: dict[str, float] = {}
        tokens = 0
        for i in range(rounds):
            indices = batches[min(i, len(batches) - 1)]
            packed = self.packer.pack([row for u in indices for row in units[u]]).to(self.device)
            reference = features = None
            if self.reference is not None:
                with torch.no_grad():
                    features = self.reference.image_features(packed) if self.engine.module.tower_is_frozen else None
                    reference = self.reference(packed, features).logprobs
            loss, metrics = objective(self.engine(packed, features), indices, reference)
            padding_round = i >= len(
                batches
            )  # another rank has more micro-batches; take part in its collectives with zero weight
            self.engine.backward(loss * (0.0 if padding_round else float(self.world)), scale_wrt_gas=False)
            if not padding_round:
                tokens += int((packed.position_ids[0] > 0).sum())
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
        return UpdateStats(sums, tokens, len(batches))

    def apply(self, lr: float) -> dict[str, float]:
        """One optimiser step at learning rate `lr` with the accumulated gradients. Returns the gradient norm before
        clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return {"learner/grad_norm": float(norm) if norm is not None else float("nan"), "learner/lr": lr}

    # ---- across ranks ----

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

    # ---- weights ----

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) of every parameter. Under ZeRO-3 every rank must exhaust it."""
        import deepspeed

        prefix = "model."  # PackedJudge.model is the Hugging Face model
        for name, parameter in self.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                yield name.removeprefix(prefix), parameter.detach()

    def refresh_reference(self) -> None:
        """pi_ref <- pi (Algorithm 1, outer iteration)."""
        if self.reference is None:
            return
        targets = dict(self.reference.model.named_parameters())
        for name, value in self.named_weights():
            targets[name].data.copy_(value)

    # ---- to and from disk ----

    def save(self, folder: Path, state: dict) -> None:
        """Write engine state, reference weights and `state` (ints, floats, strings, tensors) under `folder`. All ranks
        call it."""
        self.engine.save_checkpoint(str(folder), tag="deepspeed", client_state=state, save_latest=False)
        if self.reference is not None and self.rank == 0:
            from safetensors.torch import save_file

            save_file(
                {n: p.detach().cpu().contiguous() for n, p in self.reference.named_parameters()},
                folder / "reference.safetensors",
            )
        self.barrier()

    def load(self, folder: Path) -> dict:
        """Restore what `save` wrote and return `state`. Raises CheckpointError if the files are not what save
        writes."""
        from safetensors.torch import load_file

        from zr_ray.run.checkpoints import gate_deepspeed_files

        gate_deepspeed_files(folder / "deepspeed")
        loaded, state = self.engine.load_checkpoint(str(folder), tag="deepspeed")
        if loaded is None:
            raise CheckpointError(f"DeepSpeed could not load {folder}; resume from another checkpoint or start anew")
        if self.reference is not None:
            self.reference.load_state_dict(load_file(folder / "reference.safetensors"), strict=False)
        return state

    def save_judge(self, folder: Path) -> None:
        """Write a Hugging Face folder (weights, config, tokenizer, processor, scoring format) that transformers and
        vLLM load."""
        weights = {n: v.cpu().clone() for n, v in self.named_weights()}
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for source in self.judge.iterdir():
                if (
                    source.is_file()
                    and source.suffix not in (".safetensors", ".bin", ".md")
                    and not source.name.endswith(".index.json")
                ):
                    shutil.copy2(source, folder / source.name)
            self.engine.module.model.save_pretrained(folder, state_dict=weights)
        self.barrier()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()


def cheapest_batches(lengths: Sequence[int], rows: Sequence[int], limit: int) -> list[int]:
    """Where to cut units, sorted by falling length, into batches: ends of the batches, the last is len(lengths).

    A batch takes as long as its padded rectangle, rows * longest, plus a start that counts as limit / 16 tokens; the
    total is least among all cuts whose rectangles hold at most `limit` tokens (a unit that is larger is a batch of its
    own)."""
    best, cut = [0.0], [0]  # of the first n units: cost, and start of their last batch
    for end in range(1, len(lengths) + 1):
        held, choices = 0, []
        for start in range(end - 1, -1, -1):
            held += rows[start]
            if held * lengths[start] > limit and start < end - 1:
                break
            choices.append((best[start] + held * lengths[start] + limit / 16, start))
        cost, start = min(choices)
        best.append(cost)
        cut.append(start)
    ends = []
    n = len(lengths)
    while n:
        ends.append(n)
        n = cut[n]
    return ends[::-1]


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
        os.environ.setdefault(name, value)
    if config.gpus == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(config.threads)


def _free_port() -> int:
    """A port nobody listens on: a fixed one would let one learner outside Ray Train per machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _freeze(module, prefixes: Sequence[str]) -> list[Tensor]:
    """Turn off gradients of parameters whose Hugging Face name starts with one of `prefixes`; returns the trainable
    rest."""
    for prefix in prefixes:
        matched = [p for n, p in module.model.named_parameters() if n.startswith(prefix)]
        if not matched:
            tops = sorted({".".join(n.split(".")[:2]) for n, _ in module.model.named_parameters()})
            raise ConfigError(
                f"learner.freeze: no parameter name starts with {prefix!r}; names start with {', '.join(tops)}"
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("learner.freeze leaves nothing to train; remove a prefix")
    return trainable


def _deepspeed_config(config: LearnerSection) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # micro-batches are cut by tokens: their number differs from step to step
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "gradient_clipping": config.grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
