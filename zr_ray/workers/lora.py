"""LoRA (arXiv 2106.09685) inside a judge: W x + (alpha / rank) B A x, with W frozen; adapters by peft.

Two adapters of one shape lie over the same frozen weights: "policy" is trained, "reference" is pi_ref. So a KL term
needs no second copy of the model, and pi_ref can follow the policy (Algorithm 1). Merged weights, W + (alpha / rank)
B A, are what leaves the learner: to the engines and into a saved folder, under the names of the checkpoint.
Left out on purpose: adapters in the vision tower and on the experts of a mixture (peft adapts linear layers), and
adapters as files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from zr_ray.config.workers import LearnerSection
from zr_ray.errors import ConfigError

POLICY, REFERENCE = "policy", "reference"
BASE = ".base_layer."
"""In the name of a weight that has adapters."""


class Lora:
    """Adapters of one judge."""

    def __init__(self, model: nn.Module, config: LearnerSection, keep_reference: bool) -> None:
        """Inject them; everything else of the model is frozen. model: the Hugging Face model.   Raises: ConfigError."""
        from peft import LoraConfig, inject_adapter_in_model

        self.targets = lora_targets(model, config.lora_targets, config.freeze)
        self.scaling = config.lora_alpha / config.lora_rank
        self._model = model
        made = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=self.targets)
        model.requires_grad_(False)
        for name in (REFERENCE, POLICY) if keep_reference else (POLICY,):
            inject_adapter_in_model(made, model, name)
        self._activate(POLICY)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The model computes pi_ref while the block runs; without gradient."""
        self._activate(REFERENCE)
        try:
            with torch.no_grad():
                yield
        finally:
            self._activate(POLICY)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(policy's, reference's) parameter of every adapter matrix."""
        held = dict(self._model.named_parameters())
        own = [name for name in held if f".{POLICY}." in name]
        return [(held[name], held[name.replace(f".{POLICY}.", f".{REFERENCE}.")]) for name in own]

    def merged(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the model without adapters, from those of the model with them, in the model's order. One
        layer is held at a time."""
        base: tuple[str, Tensor] | None = None
        down: Tensor | None = None
        for name, value in named:
            if f".{REFERENCE}." in name:
                continue
            if f".lora_A.{POLICY}." in name:
                down = value.detach().float().clone()
            elif f".lora_B.{POLICY}." in name:
                weight_name, weight = base
                change = self.scaling * (value.detach().float() @ down)
                yield weight_name, (weight.float() + change).to(weight.dtype)
                base = down = None
            elif BASE in name and name.endswith(".weight"):
                # cloned: under ZeRO-3 the gathered tensor is gone when the adapter's come
                base = name.replace(BASE, "."), value.detach().clone()
            else:
                yield name.replace(BASE, "."), value

    def _activate(self, adapter: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(adapter)


def lora_targets(model: nn.Module, wanted: Sequence[str], frozen: Sequence[str]) -> list[str]:
    """Full names of the linear layers that get an adapter: those of the language model outside frozen prefixes.

    Args: wanted: last parts of names, for example q_proj; empty for all.   Raises: ConfigError if there is none, or a
    wanted one is frozen, or no linear layer."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".visual." not in f".{name}." and not name.endswith("lm_head")
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [part for part in wanted if part not in known]
    if unknown:
        raise ConfigError(
            f"learner.lora_targets: {unknown[0]!r} is no linear layer of the judge's language model; it has"
            f" {', '.join(known)}"
        )
    chosen = [name for name in linear if not wanted or name.rpartition(".")[2] in wanted]
    free = [name for name in chosen if not any(name.startswith(prefix) for prefix in frozen)]
    if not free:
        raise ConfigError(
            f"learner.lora_rank puts adapters on {', '.join(wanted) or 'the language model'}, and learner.freeze"
            f" ({', '.join(frozen)}) freezes all of it: nothing is left to train; remove a prefix"
        )
    return free


def check_lora(folder: Path, config: LearnerSection) -> None:
    """Refuse what `Lora` would refuse, from the folder's configuration alone: on a model without memory. Raises
    ConfigError."""
    if not config.lora_rank:
        return
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    lora_targets(model, config.lora_targets, config.freeze)
