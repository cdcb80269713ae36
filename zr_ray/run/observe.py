"""What a run shows while it goes on: metrics (metrics.jsonl, trackers, gauges of Ray), one line per step, waits with a
deadline."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import TYPE_CHECKING

from zr_ray.config.sections import TrackedRunSection
from zr_ray.errors import DeadlineError, ZrRayError
from zr_ray.run import console
from zr_ray.run.folder import RunFolder
from zr_ray.run.trackers import Ending, Trackers

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

HEADLINE = (
    ("reward/total", "reward {:.4f}"),
    ("reward/version", "v{:g}"),
    ("loss/total", "loss {:+.4f}"),
    ("loss/pointwise", "CE {:.4f}"),
    ("loss/pairwise", "gap {:.4f}"),
    ("policy/kl", "KL {:.2e}"),
    ("score/entropy", "entropy {:.3f}"),
    ("policy/ratio_max_abs_diff", "|ratio-1| {:.1e}"),
    ("rollout/malformed_frac", "malformed {:.1%}"),
    ("reward/no_signal_frac", "no signal {:.0%}"),
    ("sync/max_abs_diff", "sync {:.1e}"),
    ("eval/hpa", "HPA {:.3f}"),
    ("time/step_s", "{:.1f} s"),
)
"""Metric -> its text in the step line, in this order; a metric that is absent is left out."""


def say(line: str) -> None:
    """One line of the job log, at once (Ray forwards the driver's standard output)."""
    console.write(line)


REFRESH_S = 5.0
"""Gauges are said again this often: Ray forgets one that was not set for two export intervals (20 s), and a step may
take minutes."""


class Metrics:
    """Sends one step's values to metrics.jsonl, to the run's trackers and, inside Ray, to gauges `zr_<name>`, which
    stay there until `close`. `progress/since_step_s`, seconds since the last step, is a gauge only: it shows a run that
    hangs."""

    def __init__(
        self,
        run: RunFolder,
        resumed_after_step: int | None = None,
        settings: TrackedRunSection = TrackedRunSection(),
        say: Callable[[str], None] = say,
    ) -> None:
        """`resumed_after_step`: drop what an interrupted attempt wrote for later steps, where that can be dropped (see
        `trackers.py`). say: one line of the job log.   Raises: ConfigError if a tracker cannot be opened."""
        self.run = run
        self._trackers = Trackers(run, settings, say, resumed_after_step)
        if resumed_after_step is not None:
            run.rewind_metrics(resumed_after_step)
        self._gauges: dict[str, Gauge] = {}
        self._shown: dict[str, float] = {}
        self._stepped_at = time.monotonic()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._refresher: threading.Thread | None = None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record all values of one step; call once per step with everything known about it."""
        self.run.append_metrics(step, values)
        self._trackers.log(step, values)
        self._stepped_at = time.monotonic()
        self.gauge(values | {"progress/step": float(step)})

    def gauge(self, values: dict[str, float]) -> None:
        """Show values in the dashboard and to Prometheus only. Does nothing outside Ray; a non-finite value keeps the
        old one."""
        ray = sys.modules.get("ray")  # not imported here: in a test without Ray it must stay away
        if ray is None or not ray.is_initialized():
            return
        self._shown = self._shown | {name: float(value) for name, value in values.items() if math.isfinite(value)}
        self._show()
        if self._refresher is None:
            self._refresher = threading.Thread(target=self._refresh, name="gauges", daemon=True)
            self._refresher.start()

    def _show(self) -> None:
        from ray.util.metrics import Gauge

        with self._lock:  # two gauges of one name would count as two metrics
            shown = self._shown | {"progress/since_step_s": time.monotonic() - self._stepped_at}
            for name, value in shown.items():
                if name not in self._gauges:
                    self._gauges[name] = Gauge(gauge_name(name), description=name, tag_keys=("run_id",))
                self._gauges[name].set(value, tags={"run_id": self.run.run_id})

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self._show()

    def close(self, status: Ending | None = None) -> None:
        """Close the trackers, let the gauges go. status: how the run ended, None if it goes on elsewhere."""
        self._closed.set()
        self._trackers.close(status)


def gauge_name(metric: str) -> str:
    """`time/generate_s` -> `zr_time_generate_s`; Ray exports it as `ray_zr_time_generate_s`."""
    return "zr_" + "".join(letter if letter.isalnum() else "_" for letter in metric)


def console_line(step: int, total: int, metrics: dict[str, float], eta_s: float | None = None) -> str:
    """The job log's line of one step: position, headline metrics that are present, time left."""
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    parts += [
        "HPA no pairs" if name == "eval/hpa" and math.isnan(metrics[name]) else text.format(metrics[name])
        for name, text in HEADLINE
        if name in metrics
    ]
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Estimates the time left: steps to go at the median pace of the last ones, evaluations and saves included as they
    fall."""

    def __init__(self, total: int, done: int = 0, window: int = 20) -> None:
        self.total, self.window = total, window
        self._step, self._at, self._paces = done, time.monotonic(), []

    def eta_s(self, step: int) -> float:
        """Seconds until `total`, called after each finished step; the first answer rests on one step."""
        now = time.monotonic()
        if step > self._step:
            self._paces = [*self._paces, (now - self._at) / (step - self._step)][-self.window :]
        self._step, self._at = step, now
        return (self.total - step) * (median(self._paces) if self._paces else 0.0)


class Timer:
    """Seconds per phase of a step: `with timer("generate"): ...`, then `timer.take()`."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str):
        """Adds the block's wall time to the phase, also when the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[phase] = self._spent.get(phase, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """`{"time/<phase>_s": seconds, ..., "time/step_s": seconds since the last take}`; starts anew."""
        now = time.perf_counter()
        taken = {f"time/{phase}_s": spent for phase, spent in self._spent.items()} | {"time/step_s": now - self._since}
        self._spent, self._since = {}, now
        return taken


def wait_for(refs, deadline_s: float, what: str, every_s: float = 30.0):
    """Values of one Ray object ref or of a list of them, with a deadline. Says every `every_s` seconds what it waits
    for.

    The first ref that fails raises its error at once, even while others hang.
    Raises: DeadlineError naming `what` after `deadline_s` seconds; whatever the task raised.
    """
    import ray

    single = not isinstance(refs, (list, tuple))
    refs = [refs] if single else list(refs)
    values: dict = {}
    start = said = time.monotonic()
    while pending := [ref for ref in dict.fromkeys(refs) if ref not in values]:
        waited = time.monotonic() - start
        if waited >= deadline_s:
            raise DeadlineError(
                f"{what} did not finish in {duration(deadline_s)}: {len(pending)} of {len(refs)} still pending; "
                "look at its log in the Ray dashboard, or raise the deadline in the configuration"
            )
        if time.monotonic() - said >= every_s:
            said = time.monotonic()
            say(
                f"waiting for {what}: {len(pending)} of {len(refs)} pending after {duration(waited)} (deadline"
                f" {duration(deadline_s)})"
            )
        timeout = max(0.01, min(every_s, deadline_s - waited))
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout)
        values |= {ref: _value(ref) for ref in ready}
    return values[refs[0]] if single else [values[ref] for ref in refs]


def _value(ref):
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ZrRayError):
            raise error.cause from error  # its message is one line; that of Ray's twin of it is a traceback
        raise


def within(values: Generator, deadline_s: float, what: str, remedy: str) -> Iterator:
    """Yields `values` unchanged, for iterators that have no deadline of their own, as Ray Data's. When the caller stops
    early, so does `values`.

    Raises: DeadlineError naming `what` and ending with `remedy` when one value takes longer than `deadline_s`; whatever
    `values` raised."""
    # a thread waits for the iterator, the caller waits for the thread
    finished: queue.Queue = queue.Queue(1)
    stop = threading.Event()

    def pump() -> None:
        try:
            for value in values:
                finished.put((value, None))
                if stop.is_set():
                    return
            finished.put((None, None))
        except BaseException as error:  # raised again where the values are wanted
            finished.put((None, error))
        finally:
            values.close()

    threading.Thread(target=pump, daemon=True).start()
    try:
        while True:
            try:
                value, error = finished.get(timeout=deadline_s)
            except queue.Empty:
                raise DeadlineError(f"{what} did not come in {duration(deadline_s)}; {remedy}") from None
            if error is not None:
                raise error
            if value is None:
                return
            yield value
    finally:
        stop.set()
        with suppress(queue.Empty):
            finished.get_nowait()  # lets a pump that waits with a value in hand see `stop`
