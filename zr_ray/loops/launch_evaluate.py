"""From a checked configuration to a judged data set: rollout engines only, no learner.

Order as in `launch.py`: everything that can be refused is refused, then Ray is joined, then the run folder, then
engines. A resumed evaluation starts again in the same folder. The engine serves the judge folder as it is on disk;
nothing is pushed. Besides the usual files the run folder holds rows.json (rows with "mu" [I][D]), judgements.npz (label
log-probs [I, D, S, K] of every output, "ids", "groups") and table.md.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from zr_ray.config.evaluate import EvaluateConfig
from zr_ray.data.load import data_folder, load_split
from zr_ray.judging import evaluate
from zr_ray.judging.agreement import full_row
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import duration, say

EXAMPLES = 16


def launch_evaluation(config: EvaluateConfig, args: argparse.Namespace) -> None:
    """Judge, measure, report; with --dry-run print the plan only. Raises ZrRayError for everything a user can fix."""
    started_at = time.time()
    c = config.evaluate
    judge = judge_folder(config.judge.path)
    text = JudgeText(judge)  # refuses labels that are not one token

    from zr_ray.run.placement import RolloutFleet, bundle, check_feasible, living_nodes

    bundles = {"rollout": [bundle(config.rollout.cpus, config.rollout.gpus)] * config.rollout.workers}
    items = load_split(config.data.path, c.split)[: c.items] if config.data.path is not None else []
    if args.dry_run:
        facts = {"judge": f"{judge}, labels {text.format.labels} -> tokens {text.label_ids}"}
        facts |= {"data": f"{len(items)} {c.split} items"} if items else {}
        driver.print_plan(config, bundles, facts)
        return
    RunFolder.check(config)
    dashboard = driver.connect(namespace="zr_ray")
    check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, "evaluate")
    driver.first_lines(run, dashboard, started_at)
    items = items or load_split(data_folder(config.data, run.path), c.split)[: c.items]
    say(f"judge {judge}; {len(items)} {c.split} items")
    with RolloutFleet(run.run_id, judge, config.rollout, config.run.wait_for_nodes_s) as fleet:
        say(f"{len(fleet.workers)} rollout engine(s) ready after {duration(time.time() - started_at)}")
        answers = _ask(fleet.workers, text, items, config)
        swap = _swap(fleet.workers, text, items, config) if c.swap and c.mode != "direct" else None
    _report(run, config, items, answers, swap, started_at)


def _ask(workers, text: JudgeText, items: list[AnnotatedImage], config: EvaluateConfig) -> dict[str, evaluate.Judged]:
    """Row name -> answers. The largest number of samples is drawn once; smaller ones are its beginnings."""
    c = config.evaluate
    common = {"batch_items": c.batch_items, "seed": config.run.seed, "deadline_s": config.rollout.deadline_s}

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
    from zr_ray.report.page import format_table, write_report
    from zr_ray.report.tables import markdown_tables

    resamples, seed = config.evaluate.bootstrap_resamples, config.run.seed
    human, truth = evaluate.human_scores(items), evaluate.true_scores(items)
    rows = [
        full_row(name, judged, items, resamples, seed) | {"samples": judged.samples} for name, judged in answers.items()
    ]
    mu = [
        [[None if v != v else round(v, 4) for v in item] for item in judged.mu.tolist()] for judged in answers.values()
    ]
    run.write_json("rows.json", [row | {"mu": values} for row, values in zip(rows, mu, strict=True)])
    _write_judgements(run, items, answers)
    last = list(answers)[-1]
    write_examples(run, last, answers[last], None, human, items, range(len(items)), EXAMPLES)
    result = {
        "job": "evaluate",
        "run_id": run.run_id,
        "status": "SUCCEEDED",
        "wall_s": time.time() - started_at,
        "rows": rows,
        "noise_ceiling": None if truth is None else evaluate.agreement(truth, human, items, resamples, seed),
        "judge": str(judge_folder(config.judge.path)),
        "swap": swap,
    }
    run.write_result(result)
    run.write_text("table.md", markdown_tables(run.read_result()))
    report = write_report(run)
    say(format_table(run.read_result()))
    say(f"status SUCCEEDED in {duration(time.time() - started_at)}; report {report}; tables {run.path / 'table.md'}")


def _write_judgements(run: RunFolder, items: list[AnnotatedImage], answers: dict[str, evaluate.Judged]) -> None:
    """Every output's label log-probs, float32; beginnings of a longer sampling are not repeated."""
    longest = {name.split(",")[0] + (" greedy" if "greedy" in name else ""): judged for name, judged in answers.items()}
    arrays = {name: judged.label_logprobs.float().numpy() for name, judged in longest.items()}
    temporary = run.path / ".judgements.npz"
    np.savez_compressed(
        temporary, ids=np.array([i.id for i in items]), groups=np.array([i.group for i in items]), **arrays
    )
    os.replace(temporary, run.path / "judgements.npz")
