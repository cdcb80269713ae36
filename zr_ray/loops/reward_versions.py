"""Versions of the student that rewards a text-to-image run, and what was seen of its drift: on disk, in the run folder.

    <run>/reward/state.json        versions and looks, replaced as a whole: a killed run goes on with the version it had
                 v1/, v2/, ...     judge folders that load as they are; version 0 is reward.judge
                 paused.json       step at which training left for a look
                 images/, labels/  the growing pool: annotated images, a folder per look, and the teacher's labels
                 distillations/    a run folder of each distillation

A look is an entry {"step", "version", "accuracy", ...} of `refresh.py`; it is written when all that followed from it
has been done, so one that was interrupted is made again from what it left.
Left out on purpose: making anything of this; `refresh.py` does, and the report reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.refresh import RefreshSection
from zr_ray.data.files import write_whole
from zr_ray.errors import CheckpointError
from zr_ray.judging.fitness import ENOUGH_PAIRS
from zr_ray.models.identity import judge_hash

STATE_FILE, PAUSED_FILE = "state.json", "paused.json"


@dataclass(frozen=True)
class Version:
    """A student that has rewarded this run."""

    number: int
    """0: the one it began with."""
    sha256: str
    """Of its folder (`models.identity.judge_hash`): what the service names in every reply."""
    since_step: int
    """Steps done before its first reward."""


class RewardVersions:
    """Paths and facts of one run; cheap, every process may hold one. One process writes at a time."""

    def __init__(self, run_path: Path) -> None:
        self.folder = Path(run_path) / "reward"

    # ---- versions ----

    @property
    def all(self) -> tuple[Version, ...]:
        """Oldest first; empty for a run without refresh."""
        return tuple(Version(**entry) for entry in self._state()["versions"])

    @property
    def current(self) -> Version | None:
        """What the service holds."""
        return self.all[-1] if self.all else None

    @property
    def number(self) -> int:
        """Of the current version; 0 for a run without refresh."""
        return self.current.number if self.current else 0

    def numbers(self) -> dict[str, int]:
        """Hash -> number."""
        return {version.sha256: version.number for version in self.all}

    def judge(self, first: Path) -> Path:
        """Folder of the current version. first: that of version 0.   Raises: CheckpointError if it is gone or not
        what it was."""
        version = self.current
        if version is None:
            return first
        folder = self.judge_of(version.number) if version.number else first
        if not (folder / "config.json").is_file() or judge_hash(folder) != version.sha256:
            raise CheckpointError(
                f"this run's reward is version {version.number}, {folder}, which is gone or changed; put it back, or"
                " start a new run"
            )
        return folder

    def judge_of(self, number: int) -> Path:
        """Where the judge of a version after the first lies."""
        return self.folder / f"v{number}"

    def begin(self, sha256: str) -> None:
        """Note version 0, unless this run has begun before. sha256: its hash."""
        if not self.all:
            self._write({"versions": [vars(Version(0, sha256, 0))], "looks": []})

    def take(self, judge: Path, number: int) -> Path:
        """Copy a judge folder to the place of a version, whole or not at all. Returns: the place."""
        place = self.judge_of(number)
        temporary = place.with_name(f".{place.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(judge, temporary)
        shutil.rmtree(place, ignore_errors=True)  # of a look that was interrupted: nothing knows it yet
        os.replace(temporary, place)
        return place

    # ---- looks ----

    @property
    def looks(self) -> list[dict]:
        """Entries in order."""
        return self._state()["looks"]

    def record(self, look: dict, taken: Version | None = None) -> None:
        """Keep a look, and with it the version that came of it."""
        state = self._state()
        versions = state["versions"] + ([vars(taken)] if taken is not None else [])
        self._write({"versions": versions, "looks": [*state["looks"], look]})

    @property
    def distilled(self) -> int:
        """Distillations so far, those that were not taken included."""
        return sum(look["refresh"] is not None for look in self.looks)

    def due(self, step: int, total: int, c: RefreshSection) -> bool:
        """Whether a look follows `step` (1-based) of `total`: not after the last one, where nothing is left to reward,
        and not when no distillation may follow."""
        if not c.enabled or step % c.every_steps or not 0 < step < total:
            return False
        return self.distilled < c.most and all(look["step"] != step for look in self.looks)

    def pause(self, step: int) -> None:
        """Training has left after `step`, and its checkpoint is there."""
        self.folder.mkdir(exist_ok=True)
        write_whole(self.folder / PAUSED_FILE, json.dumps({"step": step}).encode())

    @property
    def pending(self) -> int | None:
        """The step whose look is to be made, or made again; None if there is none."""
        path = self.folder / PAUSED_FILE
        if not path.is_file():
            return None
        step = json.loads(path.read_text())["step"]
        return None if any(look["step"] == step for look in self.looks) else step

    @property
    def best(self) -> float | None:
        """The best accuracy that was seen of the current version; None before its first look."""
        seen = [look["accuracy"] for look in self.looks if look["version"] == self.number]
        seen += [
            look["refresh"]["accuracy"] for look in self.looks if (look["refresh"] or {}).get("taken") == self.number
        ]
        known = [value for value in seen if value is not None]
        return max(known, default=None)

    def _state(self) -> dict:
        path = self.folder / STATE_FILE
        return json.loads(path.read_text()) if path.is_file() else {"versions": [], "looks": []}

    def _write(self, state: dict) -> None:
        self.folder.mkdir(exist_ok=True)
        write_whole(self.folder / STATE_FILE, (json.dumps(state, indent=1, allow_nan=False) + "\n").encode())


def drift_reasons(
    order: dict, c: RefreshSection, weights: Mapping[str, float], best: float | None, enough: int = ENOUGH_PAIRS
) -> list[str]:
    """Why the student is to be distilled again, in words; empty if it is not.

    Args: order: of `judging.three_way`. weights: dimension -> its weight in the reward; those of 0 move nothing. best:
        the best share that was seen of this version. enough: pairs below which one dimension says nothing."""
    pooled, reasons = order["pooled"]["student/teacher"], []
    share = pooled["accuracy"]
    if share is not None and share < c.pair_limit:
        reasons.append(
            f"the student orders {share:.0%} of {pooled['pairs']} same-prompt pairs as its teacher does, limit"
            f" {c.pair_limit:.0%}"
        )
    if share is not None and c.drop is not None and best is not None and share < best - c.drop:
        reasons.append(f"that share has fallen from {best:.0%} to {share:.0%}, limit {c.drop:.0%}")
    for name, entry in order["dimensions"].items():
        own = entry["student/teacher"]
        if weights.get(name) and own["pairs"] >= max(1, enough) and own["accuracy"] < c.pair_limit:
            reasons.append(f"{name}: {own['accuracy']:.0%} of {own['pairs']} pairs, limit {c.pair_limit:.0%}")
    return reasons


def not_taken(unseen: Mapping[int, float], best_step: int, smallest_gain: float) -> str:
    """Why a distilled student is not taken; empty if it is.

    Args: unseen: step of the distillation (0: before) -> share of same-prompt pairs ordered as the teacher does, on
        prompts that are not learned from. best_step: whose weights are handed out."""
    before, after = unseen[0], unseen[best_step]
    if best_step == 0:
        return f"no evaluation ordered more pairs of unseen prompts as its teacher does than the start, {before:.1%}"
    if after - before < smallest_gain:
        return (
            f"it must order {smallest_gain:.1%} more of the pairs of unseen prompts as its teacher does than the one"
            f" before, it orders {after:.1%} where that orders {before:.1%}"
        )
    return ""
