"""The weights of a generator that is trained: float32 masters, named sets beside them, optimizer, average.

Sets ("average", "reference", "best", "old") are copied into the one model while they are used, so nothing is compiled,
placed or wrapped twice. Left out on purpose: sharding; every rank holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.t2i import ActorSection

WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.pt"


class TrainedWeights:
    """Owns the optimizer. `places` are the model's own parameters, in whatever dtype it computes in."""

    def __init__(self, places: Sequence[Tensor], actor: ActorSection, world: int) -> None:
        self.places, self.actor, self.world = list(places), actor, world
        # float32 masters: updates of 1e-4 of a weight vanish in bfloat16
        self.masters = [value.detach().float().clone() for value in self.places]
        self.sets = {name: [value.clone() for value in self.masters] for name in ("average", "reference")}
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=actor.lr, betas=tuple(actor.betas), weight_decay=actor.weight_decay
        )
        self.updates = 0

    def apply(self, lr: float) -> dict[str, float]:
        """One optimizer step at rate `lr` with the gradients of all ranks, summed. A gradient that is not finite is
        skipped, and said.

        Returns: gradient norm before clipping, rate, whether the step was skipped."""
        for master, place in zip(self.masters, self.places, strict=True):
            master.grad = torch.zeros_like(master) if place.grad is None else place.grad.float()
            place.grad = None
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.actor.grad_clip or float("inf"))
        finite = bool(norm.isfinite())
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.updates += 1
        decay = min(
            self.actor.ema_decay, self.updates / (self.updates + 10)
        )  # the first updates are not averaged with the start
        torch._foreach_lerp_(self.sets["average"], self.masters, 1 - decay)
        self._put(self.masters)
        return {"actor/grad_norm": float(norm), "actor/lr": lr, "actor/skipped": float(not finite)}

    def _sum_gradients(self) -> None:
        if self.world > 1:
            flat = torch.cat([master.grad.flatten() for master in self.masters])
            torch.distributed.all_reduce(flat)
            for master, part in zip(self.masters, flat.split([m.numel() for m in self.masters]), strict=True):
                master.grad = part.view_as(master)

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """The model with another set while the block runs; "trained" is what it has anyway."""
        if name == "trained":
            yield
            return
        self._put(self.sets[name])
        try:
            yield
        finally:
            self._put(self.masters)

    def follow(self, name: str, decay: float) -> None:
        """set <- decay set + (1 - decay) trained; makes the set if it is not there."""
        if name not in self.sets:
            self.sets[name] = [value.clone() for value in self.masters]
        torch._foreach_lerp_(self.sets[name], self.masters, 1 - decay)

    def keep(self, name: str, source: str = "average") -> None:
        """set <- a copy of another set."""
        self.sets[name] = [value.clone() for value in self.sets[source]]

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for place, value in zip(self.places, values, strict=True):
            place.copy_(value)

    def save(self, folder: Path, owned: dict) -> None:
        """Masters, sets, optimizer, and the owner's own state; one rank writes, all hold the same."""
        from safetensors.torch import save_file

        every = {"trained": self.masters} | self.sets
        named = {f"{name}/{i}": value.contiguous() for name, values in every.items() for i, value in enumerate(values)}
        save_file(named, folder / WEIGHTS_FILE)
        state = {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "owned": owned}
        torch.save(state, folder / OPTIMIZER_FILE)

    def load(self, folder: Path) -> dict:
        """What `save` wrote; every rank reads it. Returns the owner's own state."""
        from safetensors.torch import load_file

        held, count = load_file(folder / WEIGHTS_FILE), len(self.masters)
        names = {key.split("/")[0] for key in held}
        device = self.masters[0].device
        values = {name: [held[f"{name}/{i}"].to(device) for i in range(count)] for name in names}
        with torch.no_grad():
            for master, value in zip(self.masters, values.pop("trained"), strict=True):
                master.copy_(value)
        self.sets = values
        state = torch.load(folder / OPTIMIZER_FILE, weights_only=True, map_location=device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self._put(self.masters)
        return state["owned"]
