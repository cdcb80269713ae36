"""ZeRO-3 from the first parameter on: a judge is read straight into shards, and its frozen reference is sharded too.

Under ZeRO-3 (arXiv 1910.02054, section 5.3) a rank holds 1 / ranks of every parameter. A module that is made whole and
sharded afterwards needs the memory of the whole once, on every rank; so does a deep copy of it.
Left out on purpose: reading one's own part of the files only. transformers 5.19 maps all files on every rank (pages of
the file cache, one copy a node) and gathers parameter by parameter what rank 0 read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from zr_ray.config.workers import LearnerSection
from zr_ray.errors import CheckpointError
from zr_ray.models.hub_layout import save_sharded
from zr_ray.models.judge import PackedJudge, load_packed_judge
from zr_ray.workers.engine import Ranks, deepspeed_config

FOLDER = "reference"
"""Of a checkpoint: safetensors files of pi_ref, whole tensors."""


@contextmanager
def sharded_loading(config: LearnerSection) -> Iterator[None]:
    """`from_pretrained` inside gives a module of this rank's shards under ZeRO-3; an ordinary one otherwise."""
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(deepspeed_config(config))  # transformers holds a weak reference: it must live till the end
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


def gathered(parameters: Iterable[nn.Parameter], config: LearnerSection, changed: bool = False):
    """Context in which the parameters are whole; a collective under ZeRO-3. changed: what rank 0 wrote is what all
    ranks have afterwards."""
    import deepspeed

    rank = 0 if changed else None
    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=rank, enabled=config.zero_stage == 3)


def frozen_copy(module: PackedJudge, folder: Path, dtype: torch.dtype, config: LearnerSection) -> PackedJudge:
    """A judge with the same weights and no gradients, beside one that was just loaded from `folder` and is not wrapped
    yet. Under ZeRO-3 it is sharded like the other, and every rank must call its forward."""
    if config.zero_stage < 3:
        return copy.deepcopy(module).requires_grad_(False).eval()
    import deepspeed

    with sharded_loading(config):  # read again: a copy of a shard is no shard
        again, _, _ = load_packed_judge(folder, dtype)
    again.requires_grad_(False).eval()
    # without an optimizer: the hooks that gather a layer before its forward and let go of it afterwards
    engine, *_ = deepspeed.initialize(model=again, config=deepspeed_config(config), dist_init_required=False)
    return engine.module.eval()


def copy_into(reference: PackedJudge, named: Iterable[tuple[str, Tensor]], config: LearnerSection) -> None:
    """reference <- (name in the Hugging Face model, whole tensor) pairs; under ZeRO-3 every rank must give all."""
    targets = dict(reference.model.named_parameters())
    for name, value in named:
        with gathered([targets[name]], config, changed=True), torch.no_grad():
            targets[name].data.copy_(value)


def save_frozen(reference: PackedJudge, folder: Path, config: LearnerSection, ranks: Ranks) -> None:
    """Write pi_ref under the folder of a checkpoint; all ranks call it, one writes, one file's tensors in memory."""

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in reference.model.named_parameters():
            with gathered([parameter], config):
                yield name, parameter.detach()

    if ranks.rank == 0:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        save_sharded(named(), folder / FOLDER)
    elif config.zero_stage == 3:  # gathering is a collective
        for _ in named():
            pass


def load_frozen(reference: PackedJudge, folder: Path, config: LearnerSection) -> None:
    """Read what `save_frozen` wrote; all ranks call it.   Raises: CheckpointError."""
    from safetensors import safe_open

    files = sorted((folder / FOLDER).glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} must hold the reference policy in {FOLDER}/*.safetensors, there is none: the checkpoint is of a"
            " run without reference, or of an older version; start anew"
        )
    for path in files:
        with safe_open(path, "pt") as file:
            copy_into(reference, ((name, file.get_tensor(name)) for name in file.keys()), config)
