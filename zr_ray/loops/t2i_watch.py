"""The hacking watch of a run, and what of it survives a resume: alarms, the best weights, seconds of training.

It stands between journal and worker: a checkpoint holds the worker's state and the watch's. Left out on purpose: the
verdict itself, which is `functional/hacking_watch.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from zr_ray.config.t2i import T2iConfig
from zr_ray.config.t2i_reward import OF_SOURCE
from zr_ray.functional.hacking_watch import watch
from zr_ray.judging.held_out_images import compare, with_distances
from zr_ray.loops.t2i_looks import Looks
from zr_ray.run.folder import RunFolder
from zr_ray.workers.generator import GeneratorWorker

LOOKS_FILE = "looks.jsonl"
INDEPENDENT = ("referee/sum", "verifier/sum")
"""Scores that training cannot move, the best one first; those of reward sources that weigh nothing come behind."""


@dataclass
class WatchState:
    """Changes from look to look."""

    alarms: int = 0
    """In a row."""
    best: float | None = None
    """Highest independent score of a look, absolute."""
    best_step: int = 0
    training_s: float = 0.0
    """Seconds of steps, looks left out."""
    stopped: str = ""
    """Why the run was ended early; empty if it was not."""
    version: int = 0
    """Of the reward at the last look."""


class Watch:
    """One rank's. Has what a journal asks of the thing that is trained."""

    def __init__(self, worker: GeneratorWorker, config: T2iConfig, run: RunFolder) -> None:
        self.worker, self.config, self.run, self.rank = worker, config, run, worker.rank
        self.state = WatchState()

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.worker.barrier()

    def reduce_max(self, value: float) -> float:
        """Maximum over ranks."""
        return self.worker.reduce_max(value)

    def save(self, folder: Path, state: dict) -> None:
        """As `Journal` wants it."""
        self.worker.save(folder, state | {"watch": asdict(self.state)})

    def load(self, folder: Path) -> dict:
        """As `Journal` wants it."""
        state = self.worker.load(folder)
        self.state = WatchState(**state.pop("watch"))
        return state

    def rewind(self, step: int) -> None:
        """Drop lines of looks that came after the checkpoint."""
        if self.rank == 0:
            lines = [line for line in self._lines() if line["step"] <= step]
            self.run.write_text(LOOKS_FILE, "".join(json.dumps(line) + "\n" for line in lines))

    def look(self, looks: Looks, step: int) -> dict[str, float]:
        """A look at the watched prompts after `step` (1-based): keeps the best weights, counts alarms, and says why the
        run is to stop if it is. Returns: held_out/<figure> -> change against the untrained generator."""
        c, state = self.config, self.state
        base = looks.before.first(c.held_out.watched)
        rows = compare(base, with_distances(looks.look(c.held_out.watched, "average"), base), 200, c.run.seed)
        statistics = tuple(name for name in rows if name.startswith("image/") and name != "image/moved")
        independent = INDEPENDENT + unweighted(c)
        verdict = watch(rows, "reward/sum", independent, statistics, c.watch.errors, c.watch.far)
        judge = next((name for name in independent if name in rows), "reward/sum")
        if judge == "reward/sum" and state.version != looks.version:
            state.best = None  # scores of two versions are two scales
        state.version = looks.version
        if state.best is None or rows[judge]["after"] > state.best:
            state.best, state.best_step = rows[judge]["after"], step
            self.worker.weights.keep("best")
        state.alarms = state.alarms + 1 if verdict.alarm else 0
        if self.rank == 0:
            with open(self.run.path / LOOKS_FILE, "a") as file:
                line = {"step": step, "rows": rows, "alarm": verdict.reasons, "reward_version": looks.version}
                file.write(json.dumps(line) + "\n")
        own = tuple(f"reward/{name}" for name in c.reward.score_weights) if c.reward.sources else ()
        looks.say(f"look at step {step}: {_differences(rows, own)}")
        for reason in verdict.reasons:
            looks.say(f"watch: {reason}")
        if c.watch.action == "stop" and state.alarms >= c.watch.patience:
            state.stopped = f"hacking watch: {state.alarms} alarm(s) in a row"
            looks.say(f"stopping: {state.stopped}; the best weights are those of step {state.best_step}")
        return {f"held_out/{name}": row["difference"] for name, row in rows.items()}

    def over(self) -> bool:
        """Whether the run has been stopped, or t2i.stop_after_s have passed; the first rank's clock counts."""
        limit = self.config.t2i.stop_after_s
        late = limit is not None and self.state.training_s >= limit and self.rank == 0
        return bool(self.state.stopped) or bool(self.worker.reduce_sum([float(late)])[0])

    @property
    def weights(self) -> str:
        """Name of the weights to hand out: the best ones of a stopped run, else the last ones, averaged."""
        return "best" if self.state.stopped and "best" in self.worker.weights.sets else "average"

    def _lines(self) -> list[dict]:
        path = self.run.path / LOOKS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def unweighted(config: T2iConfig) -> tuple[str, ...]:
    """Figures of reward sources all of whose weights are 0: asked, and never trained on."""
    idle = [s for s in config.reward.sources if not any(s.weights.values())]
    return tuple(f"reward/{s.name}{OF_SOURCE}{score}" for s in idle for score in s.weights)


def _differences(rows: dict[str, dict[str, float]], own: tuple[str, ...]) -> str:
    """own: figures of the sources, where there are several."""
    wanted = ("reward/sum", *own, "referee/sum", "verifier/sum", "verifier/match", "image/moved")
    names = [n for n in wanted if n in rows]
    parts = [f"{n.replace('/', ' ')} {rows[n]['difference']:+.2f} (error {rows[n]['error']:.2f})" for n in names]
    return ", ".join(parts)
