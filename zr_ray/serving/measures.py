"""What a replica tells Prometheus: seconds per phase, batch sizes, refusals by reason, drift of scores and entropy.

Everything appears on the Ray metrics endpoint as `ray_zr_reward_...`; outside Ray the same calls only count in
`totals`.
Left out on purpose: request counts and latency as the caller sees them; Ray Serve's own metrics (`ray_serve_...`) have
them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

PHASES = ("queue", "batch", "preprocess", "forward", "backward")
SHOW_S = 1.0
"""Gauges of scores are set at most this often; Ray exports them every ten seconds."""
_SECONDS = [0.001 * 2**k for k in range(16)]  # 1 ms to 33 s
_ITEMS = [float(2**k) for k in range(11)]


class DriftWatch:
    """Distance of recent values from a reference window: (mean of the last `window` - mean of the reference) / std of
    the reference.

    The reference is the first `window` values seen; 0 until both windows are full."""

    def __init__(self, window: int = 512) -> None:
        self.window = window
        self._reference: list[float] = []
        self._recent: deque[float] = deque(maxlen=window)

    def add(self, values: Sequence[float]) -> None:
        """Called for every batch: cheap, `drift` does the arithmetic."""
        values = [float(value) for value in values]
        if (missing := self.window - len(self._reference)) > 0:
            self._reference += values[:missing]
            values = values[missing:]
        self._recent.extend(values)

    @property
    def drift(self) -> float:
        """In standard deviations of the reference."""
        if len(self._recent) < self.window:
            return 0.0
        return float((np.mean(self._recent) - np.mean(self._reference)) / max(np.std(self._reference), 1e-6))


class Measures:
    """The metrics of one process. `totals` counts items by status and refusals by reason, for tests and `describe`."""

    def __init__(self, replica: str, window: int = 512) -> None:
        self.totals: Counter[str] = Counter()
        self._watches: dict[tuple[str, str], DriftWatch] = {}
        self._window, self._tags = window, {"replica": replica}
        self._metrics: dict[str, object] = {}
        self._gauges: dict[str, tuple[str, float, dict[str, str]]] = {}
        self._means: dict[tuple[str, str], float] = {}
        self._shown_at = -SHOW_S

    def _metric(self, kind: str, name: str, about: str, tags: tuple[str, ...] = (), **more):
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return None
        if name not in self._metrics:
            from ray.util import metrics

            self._metrics[name] = getattr(metrics, kind)(name, description=about, tag_keys=("replica", *tags), **more)
        return self._metrics[name]

    def _gauge(self, name: str, about: str, value: float, **tags: str) -> None:
        self._gauges[f"{name}{tags}"] = about, value, {"name": name} | tags
        if metric := self._metric("Gauge", name, about, tuple(tags)):
            metric.set(value, tags=self._tags | tags)

    def refresh(self) -> None:
        """Repeat unchanged gauges: Ray forgets a gauge after two export intervals (20 s). Call it more often."""
        self._show_scores()
        self._gauge("zr_reward_replicas", "judges alive: sum over the tag", 1.0)
        for about, value, tags in list(self._gauges.values()):
            self._gauge(about=about, value=value, **tags)

    def refused(self, reason: str, count: int = 1) -> None:
        """Requests or items that were not scored, by reason."""
        self.totals[reason] += count
        if metric := self._metric(
            "Counter", "zr_reward_refused", "requests and items not scored, by reason", ("reason",)
        ):
            metric.inc(count, tags=self._tags | {"reason": reason})

    def batch(self, waited_s: Sequence[float], phases: dict[str, float]) -> None:
        """One batch: seconds each item waited, seconds of each phase."""
        if metric := self._metric("Histogram", "zr_reward_batch_items", "items computed together", boundaries=_ITEMS):
            metric.observe(float(len(waited_s)), tags=self._tags)
        if metric := self._metric(
            "Histogram", "zr_reward_phase_s", "seconds per phase of a batch", ("phase",), boundaries=_SECONDS
        ):
            metric.observe(max(waited_s), tags=self._tags | {"phase": "queue"})
            for phase, spent in phases.items():
                if spent > 0:
                    metric.observe(spent, tags=self._tags | {"phase": phase})

    def scored(self, dimensions: Sequence[str], mu: np.ndarray, entropy: np.ndarray) -> None:
        """Scores of one batch's items of equal dimensions: mu and entropy are [B, D']."""
        self.totals["ok"] += len(mu)
        if metric := self._metric("Counter", "zr_reward_scored", "items scored"):
            metric.inc(len(mu), tags=self._tags)
        for kind, values in (("score", mu), ("entropy", entropy)):
            for d, dimension in enumerate(dimensions):
                key = (kind, dimension)
                self._watches.setdefault(key, DriftWatch(self._window)).add(values[:, d])
                self._means[key] = float(values[:, d].mean())
        # in the judge's thread: sixteen gauges and their means took half a millisecond of every batch, Ray's part aside
        if time.monotonic() - self._shown_at >= SHOW_S:
            self._show_scores()

    def _show_scores(self) -> None:
        self._shown_at = time.monotonic()
        for (kind, dimension), mean in list(self._means.items()):
            self._gauge(f"zr_reward_{kind}_mean", f"mean {kind} of the last batch", mean, dimension=dimension)
            about = f"{kind}: recent mean minus the reference's, in its standard deviations"
            self._gauge(f"zr_reward_{kind}_drift", about, self._watches[kind, dimension].drift, dimension=dimension)
