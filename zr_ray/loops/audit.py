"""The audit of a student in use: it scores a pool of images, the teacher reasons about a sample of them, their
difference is the report.

Two samples: random items say how far the student is from its teacher on this data; items from the tenth it scores
highest say whether its favourites are overrated, which is where optimisation against it goes first. Even an honest
noisy student is a little kinder than its teacher there (its highest scores are high partly by chance); the limit must
leave room for that. Leaves audit.json, audit.md and the worst images in the run folder. Teacher answers go to the same
label sets as jobs/risd.py's.
Left out on purpose: retraining; the labels made here are ready for jobs/risd.py.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.audit import AuditConfig, AuditSection
from zr_ray.data.images import load_image
from zr_ray.data.load import data_folder, load_split
from zr_ray.errors import JudgeError
from zr_ray.judging.evaluate import BINS
from zr_ray.loops.distillation import find_teacher, open_labels
from zr_ray.loops.distillation_journal import compared, labelled, mean_log_q
from zr_ray.models.identity import judge_hash
from zr_ray.models.judge_text import JudgeText, judge_folder
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.run import driver
from zr_ray.run.folder import RunFolder, default_root
from zr_ray.run.observe import duration, say, wait_for

SCORING_BATCH = 64
"""Images of one task that scores; small enough for any memory, large enough that a task's start does not matter."""


def audit(config: AuditConfig, args: argparse.Namespace) -> None:
    """Score, sample, ask, report; with --dry-run print the plan only.

    Raises: ZrRayError for everything a user can fix; JudgeError, after the report, if the student is beyond the
    limits."""
    started_at, c = time.time(), config.audit
    root = Path(config.run.root) if config.run.root else default_root()
    student, teacher = judge_folder(config.judge.path), find_teacher(config.teacher.path, root)
    texts = [JudgeText(folder) for folder in (student, teacher)]

    from zr_ray.judging.label import label_items, labelling_bundles
    from zr_ray.run.placement import bundle, check_feasible, living_nodes

    phases = (
        {"student": [bundle(config.student.cpus, config.student.gpus)] * config.student.workers},
        labelling_bundles(config.rollout),
    )
    if args.dry_run:
        facts = {"student": str(student), "teacher": str(teacher)}
        driver.print_plan(config, {role: bundles for phase in phases for role, bundles in phase.items()}, facts)
        return
    dashboard = driver.connect(namespace="zr_ray")
    for bundles in phases:
        check_feasible(bundles, living_nodes(), config.run.wait_for_nodes_s)
    run = RunFolder.start(config, "audit")
    driver.first_lines(run, dashboard, started_at)
    pool = draw(load_split(data_folder(config.data, run.path), c.split), c.pool_items, config.run.seed)
    say(f"the student {student} scores {len(pool)} items")
    log_q = score_pool(student, pool, config)
    chosen = sample((log_q.exp() @ BINS).mean(-1), c, config.run.seed)
    items = [pool[i] for i in [*chosen["random"], *chosen["highest"]]]
    labels = open_labels(config, teacher, texts[1], root)
    known = label_items(items, labels, teacher, config.rollout, config.label, say)

    found = {}
    for name, members in chosen.items():
        if members:
            own = [pool[i] for i in members]
            found[name] = compared(
                mean_log_q(labelled(own, known)), log_q[members], own, c.bootstrap_resamples, config.run.seed
            )
    members = [*chosen["random"], *chosen["highest"]]
    worst = worst_items(mean_log_q(labelled(items, known)), log_q[members], items, c.worst)
    _keep_images(run, worst)
    problems = beyond(found, c)
    identities = {
        "student": {"folder": str(student), "sha256": judge_hash(student)},
        "teacher": {"folder": str(teacher), "sha256": judge_hash(teacher)},
    }
    report = identities | {
        "pool": len(pool),
        "samples": found,
        "worst": worst,
        "problems": problems,
        "wall_s": time.time() - started_at,
    }
    run.write_json("audit.json", report)
    path = run.write_text("audit.md", markdown(report))
    say(markdown(report))
    if problems:
        raise JudgeError(
            f"the student is beyond the audit's limits: {'; '.join(problems)}; see {path}, and distil it again with"
            " these labels"
        )
    say(f"within the limits after {duration(time.time() - started_at)}; report {path}")


def draw(items: Sequence[AnnotatedImage], count: int, seed: int) -> list[AnnotatedImage]:
    """`count` items at random without repetition, in their order; all if there are no more."""
    kept = np.random.default_rng((seed, 1)).permutation(len(items))[:count]
    return [items[i] for i in sorted(kept.tolist())]


def sample(mu: Tensor, c: AuditSection, seed: int) -> dict[str, list[int]]:
    """{"random": indices, "highest": indices}, disjoint; "highest" from the tenth with the highest mean score.

    Args: mu: [I] the student's score, mean over dimensions."""
    rng = np.random.default_rng((seed, 2))
    count = min(c.items, len(mu))
    top = mu.argsort(descending=True, stable=True)[: max(1, len(mu) // 10)].tolist()
    highest = [top[i] for i in rng.permutation(len(top))[: round(c.highest_frac * count)]]
    rest = sorted(set(range(len(mu))) - set(highest))
    return {"random": [rest[i] for i in rng.permutation(len(rest))[: count - len(highest)]], "highest": highest}


def score_pool(student: Path, items: Sequence[AnnotatedImage], config: AuditConfig) -> Tensor:
    """[I, D, K] float64 log q by Ray tasks with the reward service's own worker; nan where an item could not be
    scored."""
    import ray

    from zr_ray.run.placement import learner_environment

    resources = config.student
    task = ray.remote(
        num_cpus=resources.cpus, num_gpus=resources.gpus, runtime_env={"env_vars": learner_environment(resources, 1)}
    )(score_items)
    shares = [list(items[i :: resources.workers]) for i in range(resources.workers)]
    shares = [share for share in shares if share]
    device = "cuda" if resources.gpus else "cpu"
    references = [task.remote(str(student), share, resources.dtype, device, resources.threads) for share in shares]
    log_q = torch.full((len(items), len(DIMENSIONS), len(SCORE_BINS)), float("nan"), dtype=torch.float64)
    for n, answer in enumerate(wait_for(references, config.rollout.deadline_s, "the student's scores")):
        log_q[n :: resources.workers] = torch.from_numpy(answer)
    return log_q


def score_items(student: str, items: Sequence[AnnotatedImage], dtype: str, device: str, threads: int) -> np.ndarray:
    """[I, D, K] float64 log q of a student; nan for an item that its worker refuses."""
    from zr_ray.workers.reward import RewardAnswer, RewardItem, RewardWorker

    torch.set_num_threads(threads)
    worker = RewardWorker(student, dtype=dtype, device=device)
    log_q = np.full((len(items), len(DIMENSIONS), len(SCORE_BINS)), np.nan)
    for start in range(0, len(items), SCORING_BATCH):
        chunk = items[start : start + SCORING_BATCH]
        answers = worker.answer(
            [RewardItem(load_image(item.image).transpose(2, 0, 1), item.prompt, DIMENSIONS) for item in chunk]
        )
        for i, answer in enumerate(answers, start):
            if isinstance(answer, RewardAnswer):
                log_q[i] = np.log(np.maximum(answer.q.astype(np.float64), 1e-30))
    return log_q


def worst_items(teacher: Tensor, student: Tensor, items: Sequence[AnnotatedImage], count: int) -> list[dict]:
    """The `count` largest |mu student - mu teacher|, one entry per item and dimension. teacher, student: [I, D, K] log
    q."""
    ours, theirs = student.exp() @ BINS, teacher.exp() @ BINS
    gap = (ours - theirs).abs().nan_to_num(-1.0)
    order = gap.flatten().argsort(descending=True, stable=True)[:count].tolist()
    found = []
    for i, d in (divmod(index, len(DIMENSIONS)) for index in order):
        if gap[i, d] < 0:
            break
        item = {"id": items[i].id, "prompt": items[i].prompt, "image": str(items[i].image), "dimension": DIMENSIONS[d]}
        found.append(item | {"student": round(float(ours[i, d]), 3), "teacher": round(float(theirs[i, d]), 3)})
    return found


def beyond(found: dict[str, dict], c: AuditSection) -> list[str]:
    """What breaks the limits, in words."""
    problems = []
    for name, key, limit, what in (
        ("random", "mu_gap", c.mu_gap_limit, "mean |mu student - mu teacher| of random items"),
        ("highest", "mu_bias", c.bias_limit, "mean (mu student - mu teacher) of its favourites"),
    ):
        for dimension, entry in [
            ("all dimensions", found.get(name, {}).get("pooled", {})),
            *found.get(name, {}).get("dimensions", {}).items(),
        ]:
            if entry.get(key) is not None and entry[key] > limit:
                problems.append(f"{what}, {dimension}: {entry[key]:.2f} points, limit {limit:g}")
    return problems


def markdown(report: dict) -> str:
    """The report as Markdown."""
    from zr_ray.report.tables import markdown_table

    parts = [
        f"# Audit of {report['student']['folder']}",
        f"Teacher {report['teacher']['folder']}; {report['pool']} items scored by the student.",
    ]
    for name, entry in report["samples"].items():
        lines = [
            [dimension, *_cells(values)]
            for dimension, values in [("pooled", entry["pooled"]), *entry["dimensions"].items()]
        ]
        head = [
            {"random": "random items", "highest": "the student's favourites"}[name],
            "scores",
            "mu gap",
            "bias",
            "KL, nats",
            "PLCC",
            "pairs turned over %",
        ]
        parts.append(markdown_table(head, lines))
    if report["worst"]:
        lines = [
            [w["id"], w["dimension"], f"{w['student']:.2f}", f"{w['teacher']:.2f}", w["prompt"], w.get("copy", "")]
            for w in report["worst"]
        ]
        parts.append(
            markdown_table(["largest differences", "dimension", "student", "teacher", "prompt", "image"], lines)
        )
    parts.append("Verdict: " + ("; ".join(report["problems"]) if report["problems"] else "within the limits"))
    return "\n\n".join(parts) + "\n"


def _cells(entry: dict) -> list[str]:
    def cell(key: str, scale: float = 1, digits: int = 3) -> str:
        if entry[key] is None:
            return "-"
        bounds = entry.get(f"{key}_ci")
        return f"{entry[key] * scale:.{digits}f}" + (
            f" [{bounds[0] * scale:.{digits}f}, {bounds[1] * scale:.{digits}f}]" if bounds else ""
        )

    return [str(entry["items"]), cell("mu_gap"), cell("mu_bias"), cell("kl"), cell("plcc"), cell("flips", 100, 1)]


def _keep_images(run: RunFolder, worst: list[dict]) -> None:
    """Copy the worst images into the run folder: a generator's output may not stay where it was."""
    for n, entry in enumerate(worst):
        source = Path(entry["image"])
        entry["copy"] = f"examples/worst-{n:02d}{source.suffix}"
        shutil.copyfile(source, run.examples / Path(entry["copy"]).name)
