"""Versions that must be equal everywhere: zr_ray and Ray of this installation, image tags, rayVersion, pip pins in
commands."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator

from zr_ray.operate.findings import Finding, leaves


def zr_ray_version() -> str:
    """Version of the package that runs."""
    from zr_ray import __version__

    return __version__


def ray_version() -> str:
    """Version of Ray that this installation has."""
    return importlib.metadata.version("ray")


def image_findings(key: str, image: object) -> Iterator[Finding]:
    """The tag names zr_ray's and Ray's version, `<registry>/zr_ray:0.1.0-ray2.60.0`."""
    wanted = f"{zr_ray_version()}-ray{ray_version()}"
    tag = str(image).rsplit("/", 1)[-1].partition(":")[2]
    if not tag.startswith(wanted):
        yield Finding(key, f"the tag must start with {wanted}, the versions of this installation, got "
                           f"{tag or 'no tag'}: "
                      "a job and its cluster speak only the same Ray version")  # fmt: skip


def pinned_findings(tree) -> Iterator[Finding]:
    """Commands that install another Ray, or any: `ray==2.40`, `ray[default]`."""
    for path, value in leaves(tree):
        if not isinstance(value, str) or "pip install" not in value:
            continue
        for name, version in re.findall(r"\b(ray|zr_ray)(?:\[[^\]]*\])?(?:==([\w.]+))?(?=[\s'\"@]|$)", value):
            wanted = ray_version() if name == "ray" else zr_ray_version()
            if version != wanted:
                yield Finding(
                    path,
                    f"installs {name} {version or 'of any version'}, this installation has {wanted}; leave it to "
                    f"the image",
                )
