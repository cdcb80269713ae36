"""Experts of a mixture in vLLM's CPU build, where a push must pack them as the first loading did.

vLLM 0.32 pads an expert's width to a multiple of 32 and packs both matrices for its CPU kernel, but only while a layer
has no kernel yet (`UnquantizedFusedMoEMethod._setup_kernel`, fused_moe/unquantized_fused_moe_method.py: what follows
`if not is_weight_update`). A reload then copies plain matrices over packed ones: widths that needed padding stop it
with a shape error, for others nothing does but the probe. Used on CPU only: what the GPU kernels need is outside that
branch, and CUDA graphs hold on to them.
"""

from __future__ import annotations

from torch import nn


def forget_kernels(model: nn.Module) -> int:
    """Let vLLM make the kernels of a model's experts anew at the next reload, packing included; run by
    `LLM.apply_model` before it.

    Args: model: vLLM's. Returns: number of layers with experts; 0 for a dense model."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    experts = [method for method in methods if isinstance(method, UnquantizedFusedMoEMethod)]
    for method in experts:
        method.moe_kernel = None
    return len(experts)
