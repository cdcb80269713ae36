"""Learner: a judge on an engine (`engine.py`). Knows rows, micro-batches and losses, not algorithms.

An objective maps the outputs of a micro-batch to a loss that is already divided by the GLOBAL denominators. So an
update does not depend on how rows are spread over ranks or micro-batches (tested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.workers import LearnerSection
from zr_ray.errors import ConfigError, NonFiniteError
from zr_ray.models.hub_layout import SHARD_BYTES, copy_side_files, save_sharded, to_hub
from zr_ray.models.judge import JudgeOutputs, PackedJudge, load_packed_judge
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import PackedBatch, Row
from zr_ray.models.questions import QuestionRow
from zr_ray.workers.engine import REMEDY, Engine, Ranks
from zr_ray.workers.lora import Lora
from zr_ray.workers.shards import copy_into, frozen_copy, gathered, load_frozen, save_frozen, sharded_loading

Objective = Callable[[JudgeOutputs, list[int], Tensor | None], tuple[Tensor, dict[str, float]]]
"""(outputs of the micro-batch, indices of its units, reference log-probs [N, T] or None) -> (loss, metric sums)."""
MakePacker = Callable[[PackedJudge, JudgeText], object]
"""Makes what packs rows of another kind than `Row`; it has the verbs of `RowPacker`."""


@dataclass(frozen=True)
class UpdateStats:
    """What one accumulation over all micro-batches measured."""

    sums: dict[str, float]
    """Metric sums over this rank's micro-batches, as the objective returned them."""
    tokens: int
    """Packed tokens forwarded on this rank, padding excluded."""
    microbatches: int


class Learner:
    """Owns one engine around a judge. Verbs: forward, accumulate, apply, named_weights, save, load, save_judge."""

    def __init__(
        self, judge: Path, config: LearnerSection, keep_reference: bool = False, make_packer: MakePacker | None = None
    ) -> None:
        """keep_reference: hold a frozen copy, pi_ref. make_packer: for rows of another kind, for example
        `QuestionRow`s."""
        self.config, self.judge, self.ranks = config, Path(judge), Ranks(config)
        self.device, self.rank, self.world = self.ranks.device, self.ranks.rank, self.ranks.world
        self.reduce_sum, self.reduce_max, self.barrier = (
            self.ranks.reduce_sum,
            self.ranks.reduce_max,
            self.ranks.barrier,
        )
        dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
        with sharded_loading(config):
            module, self.text, self.packer = load_packed_judge(self.judge, dtype)
        _freeze(module, config.freeze)
        self.lora = Lora(module.model, config, keep_reference) if config.lora_rank else None
        self.reference: PackedJudge | None = None
        if keep_reference and self.lora is None:
            self.reference = frozen_copy(module, self.judge, dtype, config).to(self.device)
        self._refers = keep_reference
        if config.gradient_checkpointing:
            # not the reentrant kind: it loses gradients where a layer's inputs need none (a frozen tower)
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if make_packer is not None:
            self.packer = make_packer(module, self.text)
        self.engine = Engine(module, config, self.ranks)

    # ---- forward and backward ----

    def microbatches(self, units: Sequence[Sequence[Row | QuestionRow]]) -> list[list[int]]:
        """Indices of units, longest first, in batches whose padded rectangles hold at most max_tokens_per_microbatch
        tokens (one unit at least)."""
        lengths = [max(self.packer.length(row, self.packer.image_tokens(row.image)) for row in unit) for unit in units]
        rows = [sum(self.packer.sequences(row) for row in unit) for unit in units]
        # units of like length share a rectangle; ties in order of the units
        order = sorted(range(len(units)), key=lambda i: (-lengths[i], i))
        ends = cheapest_batches(
            [lengths[i] for i in order], [rows[i] for i in order], self.config.max_tokens_per_microbatch
        )
        return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.no_grad()
    def forward(self, rows: Sequence[Row | QuestionRow]) -> JudgeOutputs:
        """Outputs for rows without gradient. Under ZeRO-3 every rank must call it."""
        return self.engine.forward(self.packer.pack(rows).to(self.device))

    def accumulate(self, units: Sequence[Sequence[Row]], objective: Objective) -> UpdateStats:
        """Forward and backward over all units, micro-batch by micro-batch; gradients add up until `apply`.

        Raises: NonFiniteError on all ranks, naming what is not finite, if the loss of a micro-batch is not."""
        batches = self.microbatches(units)
        # Ranks cut by tokens and may differ in number of micro-batches, but a collective that one rank leaves out
        # hangs the others: all do as many rounds as the longest.
        rounds = int(self.reduce_max(float(len(batches))))
        sums: dict[str, float] = {}
        tokens, broken = 0, ""
        for i in range(rounds):
            indices = batches[min(i, len(batches) - 1)]
            packed = self.packer.pack([row for u in indices for row in units[u]]).to(self.device)
            reference, features = self._reference_logprobs(packed)
            loss, metrics = objective(self.engine.forward(packed, features), indices, reference)
            counted = i < len(batches)
            self.engine.backward(loss, counted)
            if counted:
                # padding is at position 0, as is each row's first token
                tokens += int((packed.position_ids[0] > 0).sum())
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
                broken = broken or not_finite(loss, metrics)
        # after all rounds and on all ranks: one that raises alone leaves the others waiting in a collective
        if self.reduce_max(float(bool(broken))):
            raise NonFiniteError(f"{broken or 'the loss of another rank'} is not finite; {REMEDY}")
        return UpdateStats(sums, tokens, len(batches))

    @torch.no_grad()
    def _reference_logprobs(self, packed: PackedBatch) -> tuple[Tensor | None, object]:
        """([N, T] log-probs of pi_ref, image features that the policy's forward can take as they are); None each where
        there is no such thing."""
        if not self._refers:
            return None, None
        # a frozen tower is the same in policy and reference: one vision forward serves both; under ZeRO-3 a tower's
        # weights are there only inside the forward of the whole
        shared = self.engine.module.tower_is_frozen and self.config.zero_stage < 3
        if self.lora is not None:
            features = self.engine.module.image_features(packed) if shared else None
            with self.lora.as_reference():
                return self.engine.forward(packed, features).logprobs, features
        features = self.reference.image_features(packed) if shared else None
        return self.reference(packed, features).logprobs, features

    def apply(self, lr: float) -> dict[str, float]:
        """One optimizer step at learning rate `lr` with the accumulated gradients; see `Engine.apply`."""
        return self.engine.apply(lr)

    # ---- weights ----

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor) of every tensor of the hub's checkpoint. Under ZeRO-3 every rank must exhaust it."""
        return self._hub(self._named_parameters())

    def described_weights(self) -> list[tuple[str, Tensor]]:
        """What `named_weights` will give, in its order, as tensors without memory. Gathers nothing."""
        return list(self._hub(_in_model(self.engine.described_weights())))

    def _hub(self, named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        return to_hub(self.engine.module.model, named if self.lora is None else self.lora.merged(named))

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the Hugging Face model, full tensor) of every parameter; a collective under ZeRO-3."""
        return _in_model(self.engine.named_weights())

    def require_finite_weights(self) -> None:
        """Raises NonFiniteError on all ranks unless every weight is finite: before a push, and before a checkpoint."""
        self.engine.require_finite_weights()

    def refresh_reference(self) -> None:
        """pi_ref <- pi (Algorithm 1, outer iteration)."""
        if self.lora is not None and self._refers:
            for own, other in self.lora.pairs():
                with gathered([own, other], self.config, changed=True):
                    other.data.copy_(own.data)
        elif self.reference is not None:
            copy_into(self.reference, self._named_parameters(), self.config)

    def give_back(self) -> None:
        """Return cached memory to the GPU, for an engine that shares it and is about to wake up."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- to and from disk ----

    def save(self, folder: Path, state: dict) -> None:
        """Write engine state, reference weights and `state` (ints, floats, strings, tensors) under `folder`. All ranks
        call it.   Raises: NonFiniteError, before anything is written."""
        self.require_finite_weights()
        self.engine.save(folder, state)
        if self.reference is not None:
            save_frozen(self.reference, folder, self.config, self.ranks)
        self.barrier()

    def load(self, folder: Path) -> dict:
        """Restore what `save` wrote and return `state`. Raises CheckpointError if the files are not what save
        writes."""
        state = self.engine.load(folder)
        if self.reference is not None:
            load_frozen(self.reference, folder, self.config)
        return state

    def save_judge(self, folder: Path, file_bytes: int = SHARD_BYTES) -> None:
        """Write a Hugging Face folder (weights, config, tokenizer, processor, scoring format) that transformers and
        vLLM load. file_bytes: of a weights file; what rank 0 holds at a time."""
        if self.rank == 0:
            copy_side_files(self.judge, folder)
            self.text.format.save(folder)  # the hub's folders have none, and templates that think get a prefix
            save_sharded(self.named_weights(), folder, file_bytes)
            model = self.engine.module.model
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
            if not (folder / "generation_config.json").is_file():
                model.generation_config.save_pretrained(folder)
        else:  # gathering is a collective
            for _ in self.named_weights():
                pass
        self.barrier()


def _in_model(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Names in the Hugging Face model, which is PackedJudge.model."""
    for name, value in named:
        yield name.removeprefix("model."), value


def not_finite(loss: Tensor, metrics: dict[str, float]) -> str:
    """Name of the first loss that is nan or infinite, empty if none is: the parts before their sum."""
    values = {name: value for name, value in metrics.items() if name.startswith("loss/") and name != "loss/total"}
    values["loss/total"] = float(loss.detach())
    return next((name for name, value in values.items() if not math.isfinite(value)), "")


def cheapest_batches(lengths: Sequence[int], rows: Sequence[int], limit: int) -> list[int]:
    """Where to cut units, sorted by falling length, into batches: ends of the batches, the last is len(lengths).

    A batch takes as long as its padded rectangle, rows * longest, plus a start that counts as limit / 16 tokens; the
    total is least among all cuts whose rectangles hold at most `limit` tokens (a unit that is larger is a batch of its
    own)."""
    # dynamic programming over prefixes; greedy filling leaves one long unit to pad a batch of short ones (LOG.md)
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


def _freeze(module: PackedJudge, prefixes: Sequence[str]) -> None:
    """Turn off gradients of parameters whose Hugging Face name starts with one of `prefixes`. Raises ConfigError if
    nothing has that name, or nothing is left."""
    for prefix in prefixes:
        matched = [p for n, p in module.model.named_parameters() if n.startswith(prefix)]
        if not matched:
            tops = sorted({".".join(n.split(".")[:2]) for n, _ in module.model.named_parameters()})
            raise ConfigError(
                f"learner.freeze: no parameter name starts with {prefix!r}; names start with {', '.join(tops)}"
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError("learner.freeze leaves nothing to train; remove a prefix")
