"""What a text-to-image run leaves behind, from an actor's rank: metrics, step lines, checkpoints, looks at held-out
images, the result.

Rank 0 writes; all ranks take part in looks. `held_out/` of the run folder holds the looks before and after,
`looks.jsonl` one line per look during training. Left out on purpose: the loop. A journal decides nothing about
training.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from zr_ray.config.t2i import RewardSection
from zr_ray.functional.group_advantages import image_rewards
from zr_ray.functional.hacking_watch import Verdict, watch
from zr_ray.judging.held_out_images import Look, best_of, compare, gsb_rows, independent_figures, with_distances
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint, latest_checkpoint, temporary_folder
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import Metrics, Progress, Timer, console_line, duration
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.local_judge import LocalJudge
from zr_ray.workers.reward_source import RewardSource, Scored, join_scored, to_bytes

PROGRESS_FILE = "progress.log"
LOOKS_FILE = "looks.jsonl"
STATE_FILE = "state.json"
HELD_OUT = 0x4E1D
"""Stream of the noise of held-out images."""
INDEPENDENT = ("referee/sum", "verifier/sum")
"""Scores that training cannot move, the best one first."""


class T2iJournal:
    """Bookkeeping of one rank of one run. `task` is `launch_t2i.T2iTask`."""

    def __init__(self, task, worker: GeneratorWorker, rewards: RewardSource) -> None:
        self.task, self.config, self.worker, self.rewards = task, task.config, worker, rewards
        self.run = RunFolder(task.run_path)
        self.referee = LocalJudge(RewardSection(), task.referee) if task.referee is not None else None
        self.timer = Timer()
        self.is_writer = worker.rank == 0
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
            looks = [line for line in self._looks() if line["step"] <= step]
            self.run.write_text(LOOKS_FILE, "".join(json.dumps(line) + "\n" for line in looks))
        self.barrier()
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
            self.barrier()
            _report_to_ray(self._last)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job's first line, earlier attempts included."""
        return self._elapsed_before_s + time.time() - self.task.started_at

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.worker.world > 1:
            torch.distributed.barrier()

    # ---- looks ----

    def look(
        self,
        count: int,
        weights: str,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seeds: int | None = None,
    ) -> Look:
        """Images of the first `count` held-out prompts by the ODE sampler, with all figures; complete on every rank."""
        worker, seeds = self.worker, seeds or self.config.held_out.seeds
        prompts = list(self.task.held_out[:count])
        mine = range(worker.rank, count, worker.world)
        items = [(p, s) for p in mine for s in range(seeds)]
        sigmas = None if steps is None else worker.adapter.sigmas(steps)
        images, scored, size = [], [], worker.options.micro_batch
        with worker.weights(weights):
            for start in range(0, len(items), size):
                part = items[start : start + size]
                texts = [prompts[p] for p, _ in part]
                noise = worker.noise([(HELD_OUT, p, s) for p, s in part])
                made = worker.sample(worker.encode(texts), noise, guidance_scale=guidance, sigmas=sigmas)
                pixels = worker.decode(made.clean)
                scored.append(self.rewards.submit(pixels, texts))
                images.append(to_bytes(pixels).movedim(1, -1).cpu().numpy())
        pixels, answers = np.concatenate(images), join_scored([future.result() for future in scored])
        texts = [prompts[p] for p, _ in items]
        figures = (
            self._reward_figures(answers) | independent_figures(pixels, texts) | self._referee_figures(pixels, texts)
        )
        return self._gathered(prompts, seeds, items, pixels, figures)

    def _referee_figures(self, pixels: np.ndarray, prompts: list[str]) -> dict[str, np.ndarray]:
        """Scores of a judge that never rewards, if there is one."""
        if self.referee is None:
            return {}
        images, size = torch.from_numpy(pixels).movedim(-1, 1).float() / 255, self.worker.options.micro_batch
        parts = [
            self.referee.submit(images[start : start + size], prompts[start : start + size]).result()
            for start in range(0, len(prompts), size)
        ]
        scored = join_scored(parts)
        named = {f"referee/{name}": scored.mu[:, d].numpy() for d, name in enumerate(scored.names)}
        return named | {"referee/sum": scored.mu.sum(-1).numpy()}

    def _reward_figures(self, scored: Scored) -> dict[str, np.ndarray]:
        named = {f"reward/{name}": scored.mu[:, d].numpy() for d, name in enumerate(scored.names)}
        total = image_rewards(scored.mu, scored.sigma, self.rewards.weights, risk=self.config.reward.risk)
        return {"reward/sum": total.numpy()} | named | {"reward/entropy": scored.entropy.mean(-1).numpy()}

    def _gathered(self, prompts, seeds: int, items, pixels: np.ndarray, figures: dict[str, np.ndarray]) -> Look:
        shares = [(items, pixels, figures)]
        if self.worker.world > 1:
            shares = [None] * self.worker.world
            torch.distributed.all_gather_object(shares, (items, pixels, figures))
        images = np.zeros((len(prompts), seeds, *pixels.shape[1:]), np.uint8)
        whole = {name: np.full((len(prompts), seeds), np.nan) for name in figures}
        for its, theirs, values in shares:
            for i, place in enumerate(its):
                images[place] = theirs[i]
                for name, value in values.items():
                    whole[name][place] = value[i]
        return Look(tuple(prompts), images, whole)

    def look_before(self) -> None:
        """The untrained generator; kept in the run folder, a resumed run reads it."""
        if not self._file("before").is_file():
            started = time.time()
            look = with_distances(self.look(len(self.task.held_out), "reference"), None)
            if self.is_writer:
                look.save(self._file("before"))
                self.say(f"untrained: {_means(look)} ({duration(time.time() - started)})")
            self.barrier()
        self.before = Look.load(self._file("before"))

    def look_beside(self, after: Look) -> dict[str, Look]:
        """What training competes with: the untrained generator at other settings; and both with the better of two by
        the reward."""
        c, sampler = self.config.held_out, self.config.generator
        looks = {}
        for name, options in {
            "untrained, guidance": dict(guidance=c.guidance_beside),
            "untrained, twice the steps": dict(steps=2 * sampler.steps),
        }.items():
            path = self._file(name.replace(", ", "_").replace(" ", "_"))
            if not path.is_file():
                look = with_distances(self.look(len(self.task.held_out), "reference", **options), self.before)
                if self.is_writer:
                    look.save(path)
                self.barrier()
            looks[name] = Look.load(path)
        return looks | {"untrained, best of 2": best_of(self.before, 2), "trained, best of 2": best_of(after, 2)}

    def look_during(self, step: int) -> Verdict:
        """A look at the watched prompts; keeps the best weights and returns what the watch says."""
        c = self.config
        with self.timer("look"):
            count = c.held_out.watched
            base = self.before.first(count)
            now = with_distances(self.look(count, "average"), base)
            rows = compare(base, now, 200, c.run.seed)
        statistics = tuple(name for name in rows if name.startswith("image/") and name not in ("image/moved",))
        verdict = watch(rows, "reward/sum", INDEPENDENT, statistics, c.watch.errors, c.watch.far)
        judge = next((name for name in INDEPENDENT if name in rows), "reward/sum")
        state = self.watched_state
        if state["best"] is None or rows[judge]["after"] > state["best"]:
            state["best"], state["best_step"] = rows[judge]["after"], step
            self.worker.sets["best"] = [value.clone() for value in self.worker.sets["average"]]
        state["alarms"] = state["alarms"] + 1 if verdict.alarm else 0
        self._pending |= {f"held_out/{name}": row["difference"] for name, row in rows.items()}
        if self.is_writer:
            with open(self.run.path / LOOKS_FILE, "a") as file:
                file.write(json.dumps({"step": step, "rows": rows, "alarm": verdict.reasons}) + "\n")
            self.say(f"look at step {step}: {_differences(rows)}")
            for reason in verdict.reasons:
                self.say(f"watch: {reason}")
        return verdict

    def _looks(self) -> list[dict]:
        path = self.run.path / LOOKS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def _file(self, name: str) -> Path:
        folder = self.run.path / "held_out"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.npz"

    # ---- the end ----

    def finish(self, step: int) -> None:
        """Look at all held-out prompts, save the generator and write result.json."""
        weights = "best" if self.watched_state["stopped"] and "best" in self.worker.sets else "average"
        after = with_distances(self.look(len(self.task.held_out), weights), self.before)
        beside = self.look_beside(after) if self.config.held_out.beside else {}
        self.worker.save_generator(self.run.path / "generator", weights)
        if not self.is_writer:
            return
        after.save(self._file("after"))
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
            "sampler": {
                "kind": "ODE, the pipeline's own schedule",
                "steps": c.generator.steps,
                "guidance_scale": c.generator.guidance_scale,
            },
            "prompts": len(self.task.held_out),
            "seeds": c.held_out.seeds,
            "rows": compare(self.before, after, resamples, seed),
            "gsb": gsb_rows(self.before, after, resamples, seed),
            "beside": {name: compare(self.before, look, resamples, seed) for name, look in beside.items()},
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


def _means(look: Look) -> str:
    names = [n for n in ("reward/sum", "verifier/sum", "verifier/match", "image/seed_distance") if n in look.figures]
    return ", ".join(f"{name.replace('/', ' ')} {np.nanmean(look.figures[name]):.3f}" for name in names)


def _differences(rows: dict) -> str:
    names = [n for n in ("reward/sum", "referee/sum", "verifier/sum", "verifier/match", "image/moved") if n in rows]
    return ", ".join(
        f"{n.replace('/', ' ')} {rows[n]['difference']:+.2f} (error {rows[n]['error']:.2f})" for n in names
    )
