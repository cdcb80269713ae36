"""Runs at the start of Python child processes that have this folder on PYTHONPATH: installs the torchvision shim, then
hands over to any other `sitecustomize` of the environment, which this one would otherwise hide."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_here = Path(__file__).resolve().parent


def _run(name: str, spec) -> None:
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)


_shim = importlib.util.spec_from_file_location("_zr_ray_torchvision_shim", _here / "torchvision_shim.py")
_run("_zr_ray_torchvision_shim", _shim)
sys.modules["_zr_ray_torchvision_shim"].install()

_next = importlib.machinery.PathFinder.find_spec(
    "sitecustomize", [p for p in sys.path if Path(p or ".").resolve() != _here]
)
if _next is not None:
    _run("_hidden_sitecustomize", _next)
