"""The vLLM logits processor that makes forbidden tokens impossible; loaded by name inside the engine.

vLLM has two model runners with an interface of their own each, and picks one by platform and feature (today the older
on CPU, the newer on CUDA). The processor is of both kinds, so whichever runs finds what it wants.
Left out on purpose: per-request state. The forbidden set belongs to the judge, not to a request.
"""

from __future__ import annotations

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2


class ForbidTokens(LogitsProcessor, LogitsProcessorV2):
    """Sets the logits of the judge's forbidden tokens to -inf (see `JudgeText.forbidden_ids`)."""

    def __init__(self, vllm_config, device_or_states, is_pin_memory: bool = False) -> None:
        """device_or_states: a torch.device from the older runner, request states that know theirs from the newer."""
        from zr_ray.workers.rollout import FORBIDDEN_KEY

        device = getattr(device_or_states, "device", device_or_states)
        self._ids = torch.tensor(vllm_config.additional_config[FORBIDDEN_KEY], dtype=torch.long, device=device)

    def apply(self, logits: torch.Tensor, ctx: object = None) -> torch.Tensor:
        """logits: [rows, vocabulary], changed in place. ctx: the newer runner's layout of the batch, not needed."""
        return logits.index_fill_(-1, self._ids, -torch.inf)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Nothing depends on the batch."""
