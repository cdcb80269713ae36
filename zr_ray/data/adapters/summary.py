"""The account of a conversion: what was written, what was left out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from zr_ray.data.checks import SPLITS


@dataclass
class Summary:
    """What a conversion wrote and what it left out. Every record of the source is in one of the counts."""

    adapter: str
    root: Path
    items: int = 0
    """Annotated images written to annotations.jsonl."""
    pairs: int = 0
    """Untied same-prompt pairs with gaps that these items make, over all dimensions."""
    preferences: int = 0
    """Pairs without gaps written to preferences.jsonl."""
    groups: int = 0
    """Prompts, over both files."""
    images: int = 0
    """Image files the records refer to."""
    by_split: Counter = field(default_factory=Counter)
    """Records (items and preferences) per split."""
    skipped: Counter = field(default_factory=Counter)
    """Reason -> records or pairs left out."""
    first: dict[str, str] = field(default_factory=dict)
    """Reason -> where it happened first."""
    shared_prompts: int = 0
    """Prompts that occur in more than one split: a judge has seen these test prompts in training."""
    notes: list[str] = field(default_factory=list)
    """What the format has no place for."""

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        splits = ", ".join(f"{name} {self.by_split[name]}" for name in SPLITS if self.by_split[name])
        head = (
            f"{self.adapter} -> {self.root}: {self.items} items, {self.groups} groups, {self.pairs} pairs with gaps, "
        )
        out = [head + f"{self.preferences} pairs without gaps, {self.images} images ({splits})"]
        out += [
            f"skipped {count}: {reason} (first: {self.first[reason]})" for reason, count in self.skipped.most_common()
        ]
        if self.shared_prompts:
            out.append(
                f"warning: {self.shared_prompts} prompts occur in more than one split: held-out results will be"
                " optimistic"
            )
        return out + [f"note: {note}" for note in self.notes]
