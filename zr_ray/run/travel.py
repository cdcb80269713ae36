"""Paths that cross machines. A folder inside this package lies elsewhere on another node: in another environment, or
where that node unpacked the job. Everything else (runs, data, a user's judge) must be under one path on all nodes."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


class PackagedPath(type(Path())):  # type: ignore[misc]
    """A path inside the package; where it is unpickled it is the path inside the package there."""

    def __reduce__(self):
        return _arrived, self.relative_to(PACKAGE).parts


def portable(path: Path | str) -> Path:
    """`path`, in a form that survives the way to another node if it lies inside the package."""
    path = Path(path)
    return PackagedPath(path) if path.is_relative_to(PACKAGE) else path


def _arrived(*parts: str) -> Path:
    return PackagedPath(PACKAGE.joinpath(*parts))
