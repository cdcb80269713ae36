"""What a text-to-image run leaves behind, from an actor's rank: metrics, steps, checkpoints, the watch, the result.

Rank 0 writes; all ranks take part in looks. `held_out/` of the run folder holds the looks before and after,
`looks.jsonl` one line per look during training. Left out on purpose: the loop. A journal decides nothing about
training.
"""

from __future__ import annotations

import json
import time

from zr_ray.functional.hacking_watch import Verdict, watch
from zr_ray.judging.held_out_images import Look, compare, gsb_rows, with_distances
from zr_ray.loops.t2i_looks import Looks
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint, latest_checkpoint, temporary_folder
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import Metrics, Progress, Timer, console_line, duration
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.reward_source import RewardSource

PROGRESS_FILE = "progress.log"
LOOKS_FILE = "looks.jsonl"
STATE_FILE = "state.json"
INDEPENDENT = ("referee/sum", "verifier/sum")
"""Scores that training cannot move, the best one first."""


class T2iJournal:
    """Bookkeeping of one rank of one run. `task` is `launch_t2i.T2iTask`."""

    def __init__(self, task, worker: GeneratorWorker, rewards: RewardSource) -> None:
        self.task, self.config, self.worker, self.rewards = task, task.config, worker, rewards
        self.run = RunFolder(task.run_path)
        self.timer = Timer()
        self.is_writer = worker.rank == 0
        self.looks = Looks(task, worker, rewards, self.run.path / "held_out", self.say)
        self.total = self.config.t2i.steps
        self._metrics: Metrics | None = None
        self._pending: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._elapsed_before_s = 0.0
        self.watched_state = {"alarms": 0, "best": None, "best_step": None, "training_s": 0.0, "stopped": ""}
        """Survives a resume."""

    def say(self, line: str) -> None:
        """One line of the job log."""
        if self.is_writer:
            with open(self.run.path / PROGRESS_FILE, "a") as file:
                file.write(line + "\n")

    # ---- steps ----

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record one finished step (1-based)."""
        metrics = self._pending | metrics | self.timer.take()
        self._pending = {}
        self.watched_state["training_s"] += metrics.get("time/step_s", 0.0) - metrics.get("time/look_s", 0.0)
        if self.is_writer:
            self._metrics.log(step, metrics)
            self.say(console_line(step, self.total, metrics, self._progress.eta_s(step)))
        self._last = {"step": step} | metrics

    @property
    def out_of_time(self) -> bool:
        """Whether t2i.stop_after_s of training steps have passed, on the writer's clock."""
        limit = self.config.t2i.stop_after_s
        over = limit is not None and self.watched_state["training_s"] >= limit
        return bool(self.worker.reduce_sum([float(over and self.is_writer)])[0])

    # ---- checkpoints ----

    def restore(self) -> int:
        """Steps already done: loads the newest complete checkpoint, if any, and rewinds what was logged after it."""
        found = latest_checkpoint(self.run.checkpoints)
        step = 0
        if found is not None:
            step, folder = found
            self.worker.load(folder)
            state = json.loads((folder / STATE_FILE).read_text())
            self.watched_state, self._elapsed_before_s = state["watched"], state["elapsed_s"]
            self.say(f"resumed after step {step} from {folder}")
        if self.is_writer:
            self._metrics = Metrics(self.run, resumed_after_step=step)
            self._progress = Progress(self.total, done=step)
            looks = [line for line in self._look_lines() if line["step"] <= step]
            self.run.write_text(LOOKS_FILE, "".join(json.dumps(line) + "\n" for line in looks))
        self.worker.barrier()
        return step

    def save(self, step: int) -> None:
        """Checkpoint after `step`; returns when it is durable. All ranks call it."""
        with self.timer("checkpoint"):
            if self.is_writer:
                begin_checkpoint(self.run.checkpoints, step)
                temporary = temporary_folder(self.run.checkpoints, step)
                self.worker.save(temporary)
                state = {"step": step, "elapsed_s": self.elapsed_s, "watched": self.watched_state}
                (temporary / STATE_FILE).write_text(json.dumps(state))
                finish_checkpoint(temporary, self.config.checkpoint.keep)
            self.worker.barrier()
            _report_to_ray(self._last)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job's first line, earlier attempts included."""
        return self._elapsed_before_s + time.time() - self.task.started_at

    # ---- looks ----

    def look_during(self, step: int) -> Verdict:
        """A look at the watched prompts; keeps the best weights and returns what the watch says."""
        c = self.config
        with self.timer("look"):
            count = c.held_out.watched
            base = self.looks.before.first(count)
            now = with_distances(self.looks.look(count, "average"), base)
            rows = compare(base, now, 200, c.run.seed)
        statistics = tuple(name for name in rows if name.startswith("image/") and name not in ("image/moved",))
        verdict = watch(rows, "reward/sum", INDEPENDENT, statistics, c.watch.errors, c.watch.far)
        judge = next((name for name in INDEPENDENT if name in rows), "reward/sum")
        state = self.watched_state
        if state["best"] is None or rows[judge]["after"] > state["best"]:
            state["best"], state["best_step"] = rows[judge]["after"], step
            self.worker.weights.keep("best")
        state["alarms"] = state["alarms"] + 1 if verdict.alarm else 0
        self._pending |= {f"held_out/{name}": row["difference"] for name, row in rows.items()}
        if self.is_writer:
            with open(self.run.path / LOOKS_FILE, "a") as file:
                file.write(json.dumps({"step": step, "rows": rows, "alarm": verdict.reasons}) + "\n")
            self.say(f"look at step {step}: {_differences(rows)}")
            for reason in verdict.reasons:
                self.say(f"watch: {reason}")
        return verdict

    def _look_lines(self) -> list[dict]:
        path = self.run.path / LOOKS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    # ---- the end ----

    def finish(self, step: int) -> None:
        """Look at all held-out prompts, save the generator and write result.json."""
        weights = "best" if self.watched_state["stopped"] and "best" in self.worker.weights.sets else "average"
        after = with_distances(self.looks.look(len(self.task.held_out), weights), self.looks.before)
        beside = self.looks.beside(after) if self.config.held_out.beside else {}
        self.worker.save_generator(self.run.path / "generator", weights)
        if not self.is_writer:
            return
        after.save(self.looks.folder / "after.npz")
        self.run.write_json("result.json", self._result(step, weights, after, beside))
        self._metrics.close()
        self.say(f"trained generator: {self.run.path / 'generator'} ({duration(self.elapsed_s)} in all)")

    def _result(self, step: int, weights: str, after: Look, beside: dict[str, Look]) -> dict:
        state, c = self.watched_state, self.config
        resamples, seed = c.held_out.bootstrap_resamples, c.run.seed
        return {
            "job": "t2i",
            "run_id": self.run.run_id,
            "algorithm": c.t2i.algorithm,
            "status": "STOPPED" if state["stopped"] else "SUCCEEDED",
            "stopped": state["stopped"],
            "wall_s": self.elapsed_s,
            "training_s": state["training_s"],
            "steps": step,
            "weights": weights + (f" of step {state['best_step']}" if weights == "best" else ""),
            "reward_calls": dict(self.rewards.counters),
            "reward_versions": sorted(self.rewards.versions),
            "sampler": {
                "kind": "ODE, the pipeline's own schedule",
                "steps": c.generator.steps,
                "guidance_scale": c.generator.guidance_scale,
            },
            "prompts": len(self.task.held_out),
            "seeds": c.held_out.seeds,
            "rows": compare(self.looks.before, after, resamples, seed),
            "gsb": gsb_rows(self.looks.before, after, resamples, seed),
            "beside": {name: compare(self.looks.before, look, resamples, seed) for name, look in beside.items()},
            "held_out_prompts": list(self.task.held_out[: c.held_out.grid]),
        }


def _report_to_ray(metrics: dict[str, float]) -> None:
    """Ray Train hears of the run at checkpoints; outside Ray Train nobody does."""
    import ray.train

    try:
        ray.train.get_context().get_world_rank()
    except Exception:  # Ray has no public question for "am I in a training worker"
        return
    ray.train.report(metrics)


def _differences(rows: dict) -> str:
    names = [n for n in ("reward/sum", "referee/sum", "verifier/sum", "verifier/match", "image/moved") if n in rows]
    return ", ".join(
        f"{n.replace('/', ' ')} {rows[n]['difference']:+.2f} (error {rows[n]['error']:.2f})" for n in names
    )
