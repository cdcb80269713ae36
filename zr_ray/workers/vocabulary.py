"""The vLLM logits processor that makes forbidden tokens impossible; loaded by name inside the engine.

Left out on purpose: per-request state. The forbidden set belongs to the judge, not to a request.
"""

from __future__ import annotations

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor


class ForbidTokens(LogitsProcessor):
    """Sets the logits of the judge's forbidden tokens to -inf (see `JudgeText.forbidden_ids`)."""

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        from zr_ray.workers.rollout import FORBIDDEN_KEY

        self._ids = torch.tensor(vllm_config.additional_config[FORBIDDEN_KEY], dtype=torch.long, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill_(-1, self._ids, -torch.inf)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """Nothing depends on the batch."""
