"""From a checked configuration to a judged data set: rollout engines only, no learner.

What jobs/evaluate.py brings to the launch frame (`run/launch.py`). A resumed evaluation starts again in the same
folder. The engine serves the judge folder as it is on disk; nothing is pushed. Besides the usual files the run folder
holds rows.json (rows with "mu" [I][D]), judgements.npz (label log-probs [I, D, S, K] of every output, "ids", "groups")
and table.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zr_ray.config.evaluate import EvaluateConfig
from zr_ray.data.files import atomic_file
from zr_ray.data.load import require_judge
from zr_ray.data.run_data import DATA_FILE, Need, load_checked_split
from zr_ray.judging import evaluate
from zr_ray.judging.agreement import full_row
from zr_ray.loops.held_out import EXAMPLES
from zr_ray.loops.training import say_result
from zr_ray.models.engine_limits import limits_text, settled
from zr_ray.models.item_check import JudgeItemCheck
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.run.folder import ROWS_FILE, RunFolder
from zr_ray.run.launch import Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.workers.recovery import Recovery
from zr_ray.world.build import data_folder


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    judge: Path
    text: JudgeText
    items: list[AnnotatedImage]
    """Empty where the simulated world is still to be written."""
    warnings: tuple[str, ...]
    """What people should know about them."""
    need: Need | None
    """What the longest question takes; None where the data is still to be written."""


def launch_evaluation(config: EvaluateConfig, args: argparse.Namespace) -> None:
    """Judge, measure, report; with --dry-run print the plan only. Raises ZrRayError for everything a user can fix."""
    launch(
        "evaluate",
        config,
        args.dry_run,
        lambda _: _check(config),
        lambda found, started: _evaluate(config, found, started),
    )


def _check(config: EvaluateConfig) -> Plan[_Found]:
    from zr_ray.run.placement import worker_bundles

    judge = judge_folder(config.judge.path)
    text = JudgeText(judge)  # refuses labels that are not one token
    require_judge(config.data.path, text.rubric)
    facts = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}
    items, warnings, need = [], (), None
    if config.data.path is not None:
        items, warnings, need = _read(config, config.data.path, text)
        facts["data"] = f"{len(items)} {config.evaluate.split} items"
        facts |= {f"warning {n}": line for n, line in enumerate(warnings, 1)}
    facts["rollout limits"] = limits_text(settled(config.rollout, judge, need), need)
    return Plan(
        _Found(judge, text, items, warnings, need), facts, phases=({"rollout": worker_bundles(config.rollout)},)
    )


def _read(
    config: EvaluateConfig, folder: Path, text: JudgeText
) -> tuple[list[AnnotatedImage], tuple[str, ...], Need | None]:
    """(items of the split, each known to fit a question; what people should know about the split; the longest)."""
    check = JudgeItemCheck.of_engine(text, config.rollout)
    items, warnings = load_checked_split(folder, config.evaluate.split, check)
    return items[: config.evaluate.items], warnings, check.need


def _evaluate(config: EvaluateConfig, found: _Found, started: Started) -> None:
    from zr_ray.run.room import reserve
    from zr_ray.workers.rollout import rollout_fleet

    c, run, since = config.evaluate, started.run, started.started_at
    folder, items, warnings, need = data_folder(config.data, run.path), found.items, found.warnings, found.need
    if not items:
        items, warnings, need = _read(config, folder, found.text)
    run.write_json(DATA_FILE, {"folder": str(folder), "held_out_items": len(items), "warnings": warnings})
    say(f"judge {found.judge}; {len(items)} {c.split} items")
    for warning in warnings:
        say(f"warning: {warning}")
    rollout = settled(config.rollout, found.judge, need)
    with (
        reserve(run.run_id, started.phases[0], config.run.room_deadline_s) as room,
        rollout_fleet(run.run_id, found.judge, rollout, group=room.take("rollout")) as fleet,
    ):
        room.settled()
        say(f"{len(fleet.workers)} rollout engine(s) ready after {duration(time.time() - since)}")
        answers = _ask(fleet.workers, found.text, items, config)
        swap = _swap(fleet.workers, found.text, items, config) if c.swap and c.mode != "direct" else None
    _report(run, config, items, answers, swap, since)


def _ask(workers, text: JudgeText, items: list[AnnotatedImage], config: EvaluateConfig) -> dict[str, evaluate.Judged]:
    """Row name -> answers. The largest number of samples is drawn once; smaller ones are its beginnings."""
    c = config.evaluate
    common = {"batch_items": c.batch_items, "seed": config.run.seed, "deadline_s": config.rollout.deadline_s}
    common["recovery"] = Recovery(workers, config.rollout)

    def judged(name: str, reasoning: bool, samples: int) -> evaluate.Judged:
        start = time.time()
        answers = evaluate.judge_items(workers, text, items, reasoning=reasoning, samples=samples, **common)
        outputs, spent = answers.sample_tokens.numel(), time.time() - start
        say(
            f"{name}: {outputs} outputs in {duration(spent)}, {outputs / max(spent, 1e-9):.0f}/s,"
            f" {int(answers.malformed.sum())} malformed"
        )
        return answers

    answers = {}
    if c.mode != "reasoning":
        answers["direct"] = judged("direct", False, 0)
    if c.mode != "direct":
        if 0 in c.samples:
            answers["reasoning, greedy"] = judged("reasoning, greedy", True, 0)
        if c.samples[-1] > 0:
            most = judged(f"reasoning, {c.samples[-1]} sampled", True, c.samples[-1])
            answers |= {_sampled_name(n): most.first(n) for n in c.samples if n > 0}
    return answers


def _sampled_name(samples: int) -> str:
    return "reasoning, 1 sample" if samples == 1 else f"reasoning, mean of {samples}"


def _swap(workers, text: JudgeText, items: list[AnnotatedImage], config: EvaluateConfig) -> dict:
    from zr_ray.judging.swap import swap_traces

    c = config.evaluate
    return swap_traces(
        workers,
        text,
        items,
        batch_items=c.batch_items,
        deadline_s=config.rollout.deadline_s,
        resamples=c.bootstrap_resamples,
        seed=config.run.seed,
    )


def _report(
    run: RunFolder,
    config: EvaluateConfig,
    items: list[AnnotatedImage],
    answers: dict[str, evaluate.Judged],
    swap: dict | None,
    started_at: float,
) -> None:
    from zr_ray.report.examples import write_examples
    from zr_ray.report.tables import markdown_tables

    resamples, seed = config.evaluate.bootstrap_resamples, config.run.seed
    rubric = next(iter(answers.values())).rubric
    human, truth = evaluate.human_scores(items, rubric), evaluate.true_scores(items, rubric)
    rows = [
        full_row(name, judged, items, resamples, seed) | {"samples": judged.samples} for name, judged in answers.items()
    ]
    mu = [evaluate.rounded(judged.mu) for judged in answers.values()]
    run.write_json(ROWS_FILE, [row | {"mu": values} for row, values in zip(rows, mu, strict=True)])
    _write_judgements(run, items, answers)
    last = list(answers)[-1]
    write_examples(run, last, answers[last], None, human, items, range(len(items)), EXAMPLES)
    result = {
        "job": "evaluate",
        "run_id": run.run_id,
        "status": "SUCCEEDED",
        "wall_s": time.time() - started_at,
        "rows": rows,
        "noise_ceiling": None if truth is None else evaluate.agreement(truth, human, items, rubric, resamples, seed),
        "judge": str(judge_folder(config.judge.path)),
        "bins": list(rubric.bins),
        "swap": swap,
    }
    run.write_result(result)
    run.write_text("table.md", markdown_tables(run.read_result()))
    say_result(run, started_at)
    say(f"tables {run.path / 'table.md'}")


def _write_judgements(run: RunFolder, items: list[AnnotatedImage], answers: dict[str, evaluate.Judged]) -> None:
    """Every output's label log-probs, float32; beginnings of a longer sampling are not repeated."""
    longest = {name.split(",")[0] + (" greedy" if "greedy" in name else ""): judged for name, judged in answers.items()}
    arrays = {name: judged.label_logprobs.float().numpy() for name, judged in longest.items()}
    names = {"ids": np.array([i.id for i in items]), "groups": np.array([i.group for i in items])}
    with atomic_file(run.path / "judgements.npz") as file:
        np.savez_compressed(file, **names, **arrays)
