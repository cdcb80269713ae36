"""What a training loop leaves behind, from a learner rank: metrics and step lines, checkpoints, evaluations, examples,
the result.

Rank 0 writes; the other ranks take part where a value comes from all of them. Step lines go to `progress.log` in the
run folder, which the driver follows, so the job log holds them and nothing else.
Left out on purpose: the loop. A journal decides nothing about training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import torch

from zr_ray.judging import evaluate
from zr_ray.judging.ask import workers_of_rank
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint, latest_checkpoint, temporary_folder
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import Metrics, Progress, Timer, console_line, duration
from zr_ray.workers.learner import Learner

PROGRESS_FILE = "progress.log"
ROWS_FILE = "rows.json"
EXAMPLES = 16
"""Examples in the report: the page stays readable and under a megabyte."""


class Journal:
    """Bookkeeping of one rank of one run. `task` has config, run_path, workers, test and started_at (see
    `launch.py`)."""

    def __init__(self, task, learner: Learner, method: str, total_steps: int, reasoning: bool) -> None:
        """method: name of the trained row. reasoning: whether that row is judged with reasoning, or directly with one
        token."""
        self.task, self.config, self.learner, self.method = task, task.config, learner, method
        self.total, self.reasoning = total_steps, reasoning
        self.run = RunFolder(task.run_path)
        self.timer = Timer()
        self.is_writer = learner.rank == 0
        self._metrics: Metrics | None = None
        self._pending: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._elapsed_before_s = 0.0

    def say(self, line: str) -> None:
        """One line of the job log."""
        if self.is_writer:
            with open(self.run.path / PROGRESS_FILE, "a") as file:
                file.write(line + "\n")

    # ---- steps ----

    def note(self, values: dict[str, float]) -> None:
        """Keep values that were measured between steps; they join the next step's metrics."""
        self._pending |= values

    def step(self, step: int, metrics: dict[str, float], tokens: float) -> None:
        """Record one finished step (1-based). tokens: generated on all ranks."""
        spent = self.timer.take()
        metrics = (
            self._pending
            | metrics
            | spent
            | {"time/tokens_per_s": tokens / max(spent.get("time/rollout_s", 0.0), 1e-9)}
        )
        self._pending = {}
        if self.is_writer:
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
            state = self.learner.load(folder)
            torch.set_rng_state(state["torch_rng"])
            self._elapsed_before_s = float(state["elapsed_s"])
            self.say(f"resumed after step {step} from {folder}")
        if self.is_writer:
            self._metrics = Metrics(self.run, resumed_after_step=step)
            self._progress = Progress(self.total, done=step)
        self.learner.barrier()
        return step

    def save(self, step: int) -> None:
        """Checkpoint after `step`; returns when it is durable. All ranks call it.

        Ray Train hears of the run here, not in every step: its controller takes a report about every two seconds and
        holds back a rank that has another one, so that a step of half a second would last two."""
        import ray.train

        with self.timer("checkpoint"):
            if self.is_writer:
                begin_checkpoint(self.run.checkpoints, step)
            self.learner.barrier()
            temporary = temporary_folder(self.run.checkpoints, step)
            state = {
                "step": step,
                "policy_version": step,
                "elapsed_s": self.elapsed_s,
                "torch_rng": torch.get_rng_state(),
            }
            self.learner.save(temporary, state)
            if self.is_writer:
                finish_checkpoint(temporary, self.config.checkpoint.keep)
            self.learner.barrier()
            ray.train.report(self._last)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job's first line, earlier attempts included."""
        return self._elapsed_before_s + time.time() - self.task.started_at

    # ---- the held-out set ----

    def evaluate_base(self) -> None:
        """Rows of the untrained judge: zero-shot (one token, no reasoning) and with reasoning; none if
        evaluation.before is false."""
        if not self.config.evaluation.before:
            return
        self._judge_and_store("zero-shot", reasoning=False, samples=0)
        self._judge_and_store("base, reasoning", reasoning=True, samples=self.config.evaluation.samples)

    def evaluate_during(self, workers: Sequence) -> dict[str, float]:
        """`eval/*` metrics on the first evaluation.items items, one greedy trace each."""
        with self.timer("evaluate"):
            items = list(self.task.test[: self.config.evaluation.items])
            judged = self._judge(items, self.reasoning, samples=0)
            pooled = evaluate.agreement(judged.mu, evaluate.human_scores(items), items, 20, self.config.run.seed)[
                "pooled"
            ]
        return {
            f"eval/{name}": float("nan") if pooled[name] is None else pooled[name]
            for name in ("hpa", "margin_hpa", "plcc", "srcc")
        }

    def _judge(self, items, reasoning: bool, samples: int):
        c = self.config
        return evaluate.judge_items(
            workers_of_rank(self.task.workers, self.learner.rank, self.learner.world),
            self.learner.text,
            items,
            reasoning=reasoning,
            samples=samples,
            batch_items=c.evaluation.batch_items,
            seed=c.run.seed,
            deadline_s=c.rollout.deadline_s,
            rank=self.learner.rank,
            world=self.learner.world,
            reduce_sum=self.learner.reduce_sum,
        )

    def _judge_and_store(self, method: str, reasoning: bool, samples: int) -> evaluate.Judged:
        judged = self._judge(list(self.task.test), reasoning, samples)
        self.store(method, judged)
        return judged

    def store(self, method: str, judged: evaluate.Judged) -> None:
        """Keep the row of `method` on the held-out set; an earlier row of that name is replaced."""
        if self.is_writer:
            items = list(self.task.test)
            row = self.row(method, judged, items)
            rows = [r for r in self._rows() if r["method"] != method] + [row | {"mu": _rounded(judged.mu)}]
            self.run.write_json(ROWS_FILE, rows)
            pooled = row["pooled"]
            self.say(
                f"{method}: HPA {pooled['hpa']:.3f} {_bracket(pooled['hpa_ci'])}, PLCC"
                f" {pooled['plcc'] or float('nan'):.3f}, {row['tokens_per_score']:.1f} tokens per score"
            )

    def row(self, method: str, judged: evaluate.Judged, items: Sequence) -> dict:
        """What is measured on the held-out set, one row of result.json."""
        return evaluate.row(
            method,
            judged,
            evaluate.human_scores(items),
            items,
            self.config.evaluation.bootstrap_resamples,
            self.config.run.seed,
        )

    def _rows(self) -> list[dict]:
        path = self.run.path / ROWS_FILE
        return json.loads(path.read_text()) if path.is_file() else []

    # ---- the end ----

    def finish(self) -> None:
        """Judge the held-out set, save the judge as a Hugging Face folder, write examples and result.json."""
        judged = self._judge_and_store(self.method, self.reasoning, samples=self.config.evaluation.samples)
        self.learner.save_judge(self.run.judge)
        if not self.is_writer:
            return
        items = list(self.task.test)
        human, truth = evaluate.human_scores(items), evaluate.true_scores(items)
        ceiling = None
        if truth is not None:
            ceiling = evaluate.agreement(
                truth, human, items, self.config.evaluation.bootstrap_resamples, self.config.run.seed
            )
        self._write_examples(judged, human, items)
        rows = [{k: v for k, v in row.items() if k != "mu"} for row in self._rows()]
        self.run.write_result(
            {
                "job": self.method,
                "run_id": self.run.run_id,
                "status": "SUCCEEDED",
                "wall_s": self.elapsed_s,
                "rows": rows,
                "noise_ceiling": ceiling,
            }
        )
        self._metrics.close()
        self.say(f"trained judge: {self.run.judge} ({duration(self.elapsed_s)} in all)")

    def _write_examples(self, judged: evaluate.Judged, human: torch.Tensor, items: Sequence) -> None:
        from zr_ray.report.examples import write_examples

        before = next(
            (torch.tensor(r["mu"], dtype=torch.float64) for r in self._rows() if r["method"] == "zero-shot"), None
        )
        mine = range(0, len(items), self.learner.world)  # the items whose reasoning text this rank holds
        write_examples(self.run, self.method, judged, before, human, items, list(mine), EXAMPLES)


def _rounded(mu: torch.Tensor) -> list[list[float]]:
    return [[round(float(v), 4) if v == v else None for v in row] for row in mu]


def _bracket(interval: list[float] | None) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
