"""What a check of a file says: the key, what is wrong with it, and whether that stops its use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PLACEHOLDER = "CHANGE-ME"
"""Stands in the files of cluster/ where only the user knows the value."""


@dataclass(frozen=True)
class Finding:
    """One remark on one key."""

    key: str
    """Dotted path into the file, list positions as numbers."""
    text: str
    """What is wrong, what was wanted, what to do."""
    fatal: bool = True
    """False: a note, the file may be used."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def unknown_keys(tree: dict, known: Iterable[str], prefix: str, what: str) -> Iterator[Finding]:
    """A finding for each key of `tree` that is not known, with the nearest known one."""
    known = list(known)
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"{what} has {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
            )
            yield Finding(f"{prefix}.{key}" if prefix else str(key), f"{what} has no such key; {hint}")


def leaves(tree, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything that is neither a mapping nor a list."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{prefix}.{i}")
    else:
        yield prefix, tree


def placeholders(tree) -> Iterator[Finding]:
    """One note that lists the values which the user has still to fill in."""
    open_keys = [path for path, value in leaves(tree) if isinstance(value, str) and PLACEHOLDER in value]
    if open_keys:
        yield Finding(
            open_keys[0],
            f"still holds {PLACEHOLDER}" + (f", as do {len(open_keys) - 1} more values" if open_keys[1:] else ""),
            fatal=False,
        )
