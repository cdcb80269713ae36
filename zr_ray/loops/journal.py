"""What every training loop leaves behind, from a rank: metrics and step lines, checkpoints, the result.

Rank 0 writes; the other ranks take part where a value comes from all of them. Step lines go to `progress.log` in the
run folder, which the driver follows, so the job log holds them and nothing else. A loop reads

    journal = Journal(task.run_path, trained, config.checkpoint, c.steps, task.started_at, config.run)
    start = journal.restore()              # also drops what a killed run wrote after its checkpoint
    ...                                    # what comes before training: a first push, rows of the untrained model
    for step in journal.steps(start):      # the first step's clock starts here
        with journal.timer("rollout"): ...
        journal.step(step + 1, metrics)
        journal.checkpoint(step + 1)
    journal.finish("t2i", {...})           # what the loop found out beside the curves

Left out on purpose: the loop, and what is measured on held-out data. Loops that train a judge bring `held_out.HeldOut`,
whose `finish()` gives the rows of result.json; a generator's loop brings its own held-out prompts in the same three
places (before the steps, inside one, at the end) and hands `finish` whatever keys its report reads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from zr_ray.config.sections import CheckpointSection, TrackedRunSection
from zr_ray.errors import NonFiniteError, StoppedError
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint, latest_checkpoint, temporary_folder
from zr_ray.run.folder import PROGRESS_FILE, RunFolder
from zr_ray.run.observe import Metrics, Progress, Timer, console_line
from zr_ray.run.stop import is_requested
from zr_ray.run.watchdog import Watchdog


class Trained(Protocol):
    """What a journal needs of the worker that trains; `workers.learner.Learner` is one."""

    rank: int

    def barrier(self) -> None:
        """Wait for all ranks."""

    def reduce_max(self, value: float) -> float:
        """Maximum over ranks."""

    def save(self, folder: Path, state: dict) -> None:
        """Write everything that training goes on from, and `state` (ints, floats, tensors). All ranks call it."""

    def load(self, folder: Path) -> dict:
        """Restore what `save` wrote and return `state`."""


def phase_deadlines(config) -> dict[str, float]:
    """Phase -> seconds after which it counts as hung, for loops that train a judge.

    Args: config: has rollout and learner. Waits for engines have their own, shorter deadlines, and may be repeated
        once on an engine that was started again; what is left is a collective that does not end."""
    engines = 2 * config.rollout.deadline_s + config.rollout.start_deadline_s
    alone = dict.fromkeys(("train", "teacher", "checkpoint"), config.learner.deadline_s)
    return alone | dict.fromkeys(("rollout", "push"), config.learner.deadline_s + engines)


class Journal:
    """Bookkeeping of one rank of one run."""

    def __init__(
        self,
        run_path: Path,
        trained: Trained,
        checkpoint: CheckpointSection,
        total_steps: int,
        started_at: float,
        settings: TrackedRunSection = TrackedRunSection(),
        deadlines_s: Mapping[str, float] | None = None,
    ) -> None:
        """started_at: time.time() of the job's first line. settings: which trackers get the steps. deadlines_s: phase
        -> seconds after which it counts as hung, and this process ends itself (`run/watchdog.py`)."""
        self.run, self.trained, self.total = RunFolder(run_path), trained, total_steps
        self._timer = Timer()
        self._watchdog = Watchdog(self.run.path, f"rank{trained.rank}", deadlines_s or {})
        self._notice_taken = False
        self._step = 0
        self.is_writer = trained.rank == 0
        self._checkpoint, self._started_at, self._settings = checkpoint, started_at, settings
        self._metrics: Metrics | None = None  # of the writer, from `restore` on
        self._progress = Progress(total_steps)
        self._pending: dict[str, float] = {}
        self.restored: dict = {}
        """State of the checkpoint that `restore` found, with what `before` of `checkpoint` gave; empty at a new run."""
        self._last: dict[str, float] = {}
        self._elapsed_before_s = 0.0

    def say(self, line: str) -> None:
        """One line of the job log."""
        if self.is_writer:
            # opened for each line: what a killed process had said is on disk
            with open(self.run.path / PROGRESS_FILE, "a") as file:
                file.write(line + "\n")

    def tell(self, line: str) -> None:
        """One line of the job log from any rank: what only that rank knows."""
        with open(self.run.path / PROGRESS_FILE, "a") as file:
            file.write(line + "\n" if self.is_writer else f"rank {self.trained.rank}: {line}\n")

    # ---- steps ----

    def steps(self, start: int) -> Iterator[int]:
        """The steps still to be done, 0-based. The clock starts when the first one is asked for: what came before it
        (engines, a first push, evaluation) is no step, and is no part of its time or of the ETA."""
        self._timer.take()  # forget what was timed before
        self._progress = Progress(self.total, done=start)
        for step in range(start, self.total):
            self._step = step + 1
            yield step

    @contextmanager
    def timer(self, phase: str) -> Iterator[None]:
        """Adds the block's wall time to `time/<phase>_s` of the step. A NonFiniteError of the block gains the step, and
        what is left to go on from."""
        with self._timer(phase), self._watchdog(phase):
            try:
                yield
            except NonFiniteError as error:
                raise NonFiniteError(f"step {self._step}, {phase}: {error}; {self.kept()}") from error

    def kept(self) -> str:
        """What of the run is still good, in words."""
        found = latest_checkpoint(self.run.checkpoints)
        if found is None:
            return "there is no checkpoint yet: start a new run"
        return f"the checkpoint of step {found[0]} is as it was: change that and go on with --resume {self.run.path}"

    def note(self, values: dict[str, float]) -> None:
        """Keep values that were measured between steps; they join the next step's metrics."""
        self._pending |= values

    def step(self, step: int, metrics: dict[str, float], tokens: float | None = None) -> None:
        """Record one finished step (1-based). tokens: generated on all ranks, for `time/tokens_per_s`."""
        spent = self._timer.take()
        metrics = self._pending | metrics | spent
        if tokens is not None:
            metrics["time/tokens_per_s"] = tokens / max(spent.get("time/rollout_s", 0.0), 1e-9)
        self._pending = {}
        if self._metrics is not None:
            self._metrics.log(step, metrics)
            self.say(console_line(step, self.total, metrics, self._progress.eta_s(step)))
        self._last = {"step": step} | metrics

    # ---- checkpoints ----

    def restore(self) -> int:
        """Steps already done: loads the newest complete checkpoint, if any, and rewinds what was logged after it."""
        found = latest_checkpoint(self.run.checkpoints)
        step = 0
        if found is not None:
            step, folder = found
            self.restored = state = self.trained.load(folder)
            torch.set_rng_state(
                state["torch_rng"]
            )  # rank 0's; loops draw from (seed, step), models may draw from torch
            self._elapsed_before_s = float(state["elapsed_s"])
            self.say(f"resumed after step {step} from {folder}")
        if self.is_writer:
            self._metrics = Metrics(self.run, step, self._settings, self.say)
        self.trained.barrier()
        return step

    def checkpoint(self, step: int, now: bool = False, before: Callable[[], dict] | None = None) -> None:
        """Save after `step` (1-based) if it is due: every checkpoint.every_steps, after the last step, `now`, when the
        run has been told to stop, and once when a node of it is about to be taken away.

        Args: before: called on all ranks when a checkpoint is due, before it is begun; what it returns (ints, floats,
            strings, tensors, equal on all ranks) is kept in the checkpoint, see `restored`.
        Raises: StoppedError, on all ranks, after the checkpoint of a run that has been told to stop, unless it was the
        last step."""
        stop = self.trained.reduce_max(float(self.is_writer and is_requested(self.run.path))) > 0
        if stop or now or self._notice() or step % self._checkpoint.every_steps == 0 or step == self.total:
            self._save(step, before() if before is not None else {})
        if stop and step < self.total:
            if self._metrics is not None:
                self._metrics.close()
            raise StoppedError(
                f"stopped on request after step {step} of {self.total}, its checkpoint is complete; continue with"
                f" --resume {self.run.run_id}"
            )

    def _notice(self) -> bool:
        """Whether Ray has just announced that it takes a node of this training away. All ranks call it; each notice is
        answered once, for Ray Train starts the learners anew when the node has gone."""
        if self._notice_taken or not _is_announced():
            return False
        self._notice_taken = True
        self.say("a node of this run is about to be taken away: writing a checkpoint")
        return True

    def _save(self, step: int, also: dict) -> None:
        """Checkpoint after `step`; returns when it is durable. All ranks call it.

        Ray Train hears of the run here, not in every step: its controller takes a report about every two seconds and
        holds back a rank that has another one, so that a step of half a second would last two."""
        with self.timer("checkpoint"):
            if self.is_writer:
                begin_checkpoint(self.run.checkpoints, step)
            self.trained.barrier()  # the folder is there before other ranks write into it
            temporary = temporary_folder(self.run.checkpoints, step)
            state = also | {
                "step": step,
                "policy_version": step,
                "elapsed_s": self.elapsed_s,
                "torch_rng": torch.get_rng_state(),
            }
            self.trained.save(temporary, state)
            if self.is_writer:  # `save` ends with a barrier: all ranks' files are closed
                finish_checkpoint(temporary, self._checkpoint.keep)
            self.trained.barrier()
            _report_to_ray(self._last)

    # ---- the end ----

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job's first line, earlier attempts included."""
        return self._elapsed_before_s + time.time() - self._started_at

    def leave(self) -> None:
        """Close what is open of a run that goes on later, from its newest checkpoint, in other processes."""
        if self._metrics is not None:
            self._metrics.close()

    def finish(self, job: str, found: dict) -> None:
        """Write result.json, close the metrics. found: further keys (see `run/result.py`), read on rank 0 only; a
        "status" among them replaces SUCCEEDED."""
        if self._metrics is None:
            return
        head = {"job": job, "run_id": self.run.run_id, "status": "SUCCEEDED", "wall_s": self.elapsed_s}
        self.run.write_result(head | found)
        self._metrics.close()


def _report_to_ray(metrics: dict[str, float]) -> None:
    """Tell Ray Train; outside of it (tests, a loop in one process) nobody is told."""
    if _in_ray_train():
        import ray.train

        ray.train.report(metrics)


def _is_announced() -> bool:
    """Whether Ray Train knows of a node of this training that goes; a barrier of its workers."""
    if not _in_ray_train() or os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return False
    import ray.train

    return ray.train.get_preemption_info() is not None


def _in_ray_train() -> bool:
    import ray.train

    try:
        ray.train.get_context().get_world_rank()
    except Exception:  # Ray has no public question for "is this a training worker"
        return False
    return True
