"""zr_ray: Ray-distributed RL post-training for visual reward models and the image generators that learn from them.

`PUBLIC` lists every name that users import from here; each is loaded when it is first asked for, so `import zr_ray`
stays cheap.
"""

from importlib import import_module

from zr_ray.startup import torchvision_shim

__version__ = "0.1.0"

PUBLIC = {
    "RewardClient": "zr_ray.serving.client",
    "Student": "zr_ray.models.student",
    "app": "zr_ray.serving.application",  # for Serve files: `import_path: zr_ray:app`
}
"""Public name -> the module that holds it."""
__all__ = sorted(PUBLIC)

torchvision_shim.install()


def __getattr__(name: str):
    if name not in PUBLIC:
        raise AttributeError(f"module 'zr_ray' has no attribute '{name}'; it offers {', '.join(__all__)}")
    return getattr(import_module(PUBLIC[name]), name)
