"""The held-out set of a loop that trains a judge: rows of the untrained judge, a curve during training, the final row.

Rows (HPA and its relatives, `judging/evaluate.py`) lie in rows.json until the end, so that a resumed run keeps those of
the untrained judge. How the judge is asked is given: through the rollout engines, or by the learner's own forward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch

from zr_ray.config.sections import EvaluationSection
from zr_ray.judging import evaluate
from zr_ray.judging.ask import workers_of_rank
from zr_ray.judging.direct import judge_directly
from zr_ray.loops.journal import Journal
from zr_ray.records import AnnotatedImage
from zr_ray.run.folder import ROWS_FILE
from zr_ray.run.result import sampled_row, value_text
from zr_ray.workers.learner import Learner
from zr_ray.workers.recovery import Recovery

EXAMPLES = 16
"""Examples in the report: the page stays readable and under a megabyte."""
DURING = ("hpa", "margin_hpa", "plcc", "srcc")
"""What is measured during training, as `eval/<name>`."""
DURING_RESAMPLES = 20
"""Bootstrap resamples during training: the intervals are computed with the values, and nobody reads them."""

Ask = Callable[[Sequence[AnnotatedImage], bool, int], evaluate.Judged]
"""(items, whether to reason, traces per question or 0 for a greedy one) -> answers. All ranks call it together."""


class HeldOut:
    """Rows of one judge on the evaluation split. All ranks hold one; rank 0 writes."""

    reasons_before = True
    """Whether the untrained judge gets a row with reasoning beside the direct one."""

    def __init__(self, journal: Journal, learner: Learner, task, method: str, reasoning: bool, ask: Ask) -> None:
        """task: has config (evaluation, run.seed) and test. method: name of the trained row. reasoning: whether that
        row is judged with reasoning, or directly with one token."""
        self.journal, self.learner, self.items = journal, learner, list(task.test)
        self.method, self.reasoning, self.ask = method, reasoning, ask
        self.c: EvaluationSection = task.config.evaluation
        self.seed: int = task.config.run.seed

    def before(self) -> None:
        """Rows of the untrained judge: zero-shot (one token, no reasoning) and with reasoning; none if
        evaluation.before is false."""
        if not self.c.before:
            return
        self.store("zero-shot", self.ask(self.items, False, 0))
        if self.reasons_before:
            self.store("base, reasoning", self.ask(self.items, True, self.c.samples))

    def is_due(self, step: int) -> bool:
        """Whether `step` (1-based) is followed by an evaluation; the last one is not, `finish` judges then."""
        return bool(self.c.every_steps) and step % self.c.every_steps == 0 and step < self.journal.total

    def during(self, step: int) -> dict[str, float]:
        """`eval/*` metrics on the first evaluation.items items, one greedy trace each; empty unless due."""
        if not self.is_due(step):
            return {}
        with self.journal.timer("evaluate"):
            items = self.items[: self.c.items]  # always the same ones: points of a curve
            judged = self.ask(items, self.reasoning, 0)
            return {f"eval/{name}": value for name, value in self.measured(judged, items).items()}

    def measured(self, judged: evaluate.Judged, items: list[AnnotatedImage]) -> dict[str, float]:
        """One point of the curves."""
        human, rubric = evaluate.human_scores(items, judged.rubric), judged.rubric
        pooled = evaluate.agreement(judged.mu, human, items, rubric, DURING_RESAMPLES, self.seed)["pooled"]
        return {name: float("nan") if pooled[name] is None else pooled[name] for name in DURING}

    def finish(self) -> dict:
        """Judge the held-out set, save the judge as a Hugging Face folder, write examples.   Returns: on rank 0 "rows",
        "noise_ceiling" and "bins" of result.json."""
        if self.reasoning and self.c.sampled:
            # before the method's own row, which stays the last
            self.store(sampled_row(self.method), self.ask(self.items, True, self.c.sampled))
        judged = self.ask(self.items, self.reasoning, self.c.samples)
        self.store(self.method, judged)
        self.learner.save_judge(self.journal.run.judge)
        return self.result(judged) if self.journal.is_writer else {}

    def result(self, judged: evaluate.Judged) -> dict:
        """What rank 0 finds out from the trained judge's answers."""
        rubric = judged.rubric
        human, truth = evaluate.human_scores(self.items, rubric), evaluate.true_scores(self.items, rubric)
        ceiling = None
        if truth is not None:
            ceiling = evaluate.agreement(truth, human, self.items, rubric, self.c.bootstrap_resamples, self.seed)
        self._write_examples(judged, human)
        rows = [{k: v for k, v in row.items() if k != "mu"} for row in self._rows()]
        self.journal.say(f"trained judge: {self.journal.run.judge}")
        return {"rows": rows, "noise_ceiling": ceiling, "bins": list(rubric.bins)} | verdict(judged)

    def store(self, method: str, judged: evaluate.Judged) -> None:
        """Keep the row of `method`; an earlier row of that name is replaced."""
        if not self.journal.is_writer:
            return
        row = self.row(method, judged)
        # mu stays with the row: examples compare before and after, also in a resumed run
        rows = [r for r in self._rows() if r["method"] != method] + [row | {"mu": evaluate.rounded(judged.mu)}]
        self.journal.run.write_json(ROWS_FILE, rows)
        pooled = row["pooled"]
        self.journal.say(
            f"{method}: HPA {value_text(pooled, 'hpa')} {_bracket(pooled['hpa_ci'])},"
            f" PLCC {value_text(pooled, 'plcc')}, {row['tokens_per_score']:.1f} tokens per score"
        )

    def row(self, method: str, judged: evaluate.Judged) -> dict:
        """What is measured, one row of result.json."""
        human = evaluate.human_scores(self.items, judged.rubric)
        return evaluate.row(method, judged, human, self.items, self.c.bootstrap_resamples, self.seed)

    def _rows(self) -> list[dict]:
        path = self.journal.run.path / ROWS_FILE
        return json.loads(path.read_text()) if path.is_file() else []

    def _write_examples(self, judged: evaluate.Judged, human: torch.Tensor) -> None:
        from zr_ray.report.examples import write_examples

        before = next(
            (torch.tensor(r["mu"], dtype=torch.float64) for r in self._rows() if r["method"] == "zero-shot"), None
        )
        mine = range(0, len(self.items), self.learner.world)  # the items whose reasoning text this rank holds
        write_examples(self.journal.run, self.method, judged, before, human, self.items, list(mine), EXAMPLES)


def verdict(judged: evaluate.Judged) -> dict:
    """Nothing, or the status of a run whose judge scores nothing: it must not pass for one that learned."""
    if judged.mu.isfinite().any():
        return {}
    problem = (
        f"the trained judge gave no score in any of {judged.sample_tokens.numel()} outputs on the held-out set; it has"
        " come apart, or its outputs are longer than rollout.max_new_tokens"
    )
    return {"status": "FAILED", "problem": problem}


def by_engines(learner: Learner, task, recovery: Recovery) -> Ask:
    """Asking through this rank's share of the run's rollout actors, which must hold the learner's weights."""
    c, workers = task.config, workers_of_rank(task.workers, learner.rank, learner.world)

    def ask(items: Sequence[AnnotatedImage], reasoning: bool, samples: int) -> evaluate.Judged:
        return evaluate.judge_items(
            workers,
            learner.text,
            items,
            reasoning=reasoning,
            samples=samples,
            batch_items=c.evaluation.batch_items,
            seed=c.run.seed,
            deadline_s=c.rollout.deadline_s,
            rank=learner.rank,
            world=learner.world,
            reduce_sum=learner.reduce_sum,
            recovery=recovery,
        )

    return ask


def by_learner(learner: Learner, task) -> Ask:
    """Asking the learner's own forward for direct scores, without an engine."""
    return lambda items, reasoning, samples: judge_directly(learner, items, task.config.evaluation.batch_items)


def _bracket(interval: list[float] | None) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
