"""The Serve import path that deployments name: `zr_ray.serve:app`. What it builds is in `serving/application.py`."""

from zr_ray.serving.application import app

__all__ = ["app"]
