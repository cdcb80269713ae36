"""Forbidden tokens under both of vLLM's model runners."""

from types import SimpleNamespace

import pytest
import torch

from zr_ray.workers.rollout import FORBIDDEN_KEY


@pytest.mark.parametrize("runner", ["older", "newer"])
def test_forbidden_tokens_are_impossible_under_both_runners(runner):
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    (kind,) = _load_v2_logitsprocs_by_fqcns(["zr_ray.workers.vocabulary:ForbidTokens"])  # what a GPU engine does
    assert issubclass(kind, LogitsProcessor if runner == "older" else LogitsProcessorV2)
    config = SimpleNamespace(additional_config={FORBIDDEN_KEY: [1, 3]})
    cpu = torch.device("cpu")
    made = kind(config, cpu, False) if runner == "older" else kind(config, SimpleNamespace(device=cpu))
    logits = torch.zeros(2, 5)
    out = made.apply(logits) if runner == "older" else made.apply(logits, SimpleNamespace())
    assert out.softmax(-1)[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])
    assert made.is_argmax_invariant() is False
