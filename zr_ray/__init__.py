"""zr_ray: Ray-distributed RL post-training for visual reward models and the image generators that learn from them."""

from zr_ray import torchvision_shim

__version__ = "0.1.0"

torchvision_shim.install()
