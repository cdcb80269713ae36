"""The audit of a student in use: it scores a pool of images, the teacher reasons about a sample of them, their
difference is the report.

Two samples: random items say how far the student is from its teacher on this data; items from the tenth it scores
highest say whether its favorites are overrated, which is where optimization against it goes first. Even an honest
noisy student is a little kinder than its teacher there (its highest scores are high partly by chance); the limit must
leave room for that. Leaves audit.json, audit.md and the worst images in the run folder. Teacher answers go to the same
label sets as jobs/risd.py's.
Whole prompts are drawn where that fits, so that the order inside a prompt can be compared, too: student, teacher and,
where the data has one, reference against one another (`judging/three_way.py`). That says when to distil again, and when
it would not help because the teacher is wrong itself.
Left out on purpose: retraining; the labels made here are ready for jobs/risd.py, and the message names its command.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.audit import AuditConfig, AuditSection
from zr_ray.data.load import require_judge
from zr_ray.data.run_data import Need, load_checked_split
from zr_ray.errors import ConfigError, JudgeError
from zr_ray.judging.pool import score_pool
from zr_ray.judging.three_way import drifted, three_way
from zr_ray.loops.distillation import (
    STUDENT_FILE,
    find_student,
    find_teacher,
    open_labels,
    settle_student,
    settle_teacher,
    shared_rubric,
    write_teacher,
)
from zr_ray.loops.held_out_taught import compared, labeled, mean_log_q
from zr_ray.loops.run_images import GeneratorRun, find_generator_run, run_images
from zr_ray.models.engine_limits import limits_text, settled
from zr_ray.models.identity import judge_hash
from zr_ray.models.item_check import JudgeItemCheck
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage
from zr_ray.report.audit_page import markdown
from zr_ray.rubric import Rubric
from zr_ray.run.folder import RunFolder, default_root
from zr_ray.run.launch import Bundles, Plan, Started, launch
from zr_ray.run.observe import duration, say
from zr_ray.world.build import data_folder


@dataclass(frozen=True)
class _Found:
    """What the check leaves for the body."""

    root: Path
    """Folder of all runs."""
    student: Path
    teacher: Path
    text: JudgeText
    """Tokenizer side of the teacher."""
    rubric: Rubric
    """Dimensions and bins that teacher and student share."""
    items: list[AnnotatedImage] | None
    """None where the simulated world is still to be written."""
    need: Need | None
    """What the longest question takes; None with `items`."""
    generator: GeneratorRun | None
    """Whose images are audited, instead of data.path's."""


def audit(config: AuditConfig, args: argparse.Namespace) -> None:
    """Score, sample, ask, report; with --dry-run print the plan only. A resumed audit starts again in the same folder.

    Raises: ZrRayError for everything a user can fix; JudgeError, after the report, if the student is beyond the
    limits."""
    launch(
        "audit",
        config,
        args.dry_run,
        lambda resumed: _check(config, resumed),
        lambda found, started: _audit(config, found, started),
    )


def _check(config: AuditConfig, resumed: RunFolder | None) -> Plan[_Found]:
    from zr_ray.judging.label import labeling_bundles
    from zr_ray.run.placement import worker_bundles

    root = Path(config.run.root) if config.run.root else default_root()
    student = settle_student(resumed, find_student(config.judge.path, root))
    teacher = settle_teacher(resumed, find_teacher(config.teacher.path, root))
    rubric, text = shared_rubric(teacher, student), JudgeText(teacher)
    facts, items, need = {"student": str(student), "teacher": str(teacher)}, None, None
    generator = find_generator_run(config.images.of, root) if config.images.of is not None else None
    if generator is not None and config.data.path is not None:
        raise ConfigError("an audit takes images of one origin, got data.path and images.of; leave one of them out")
    if generator is not None:
        facts["images"] = f"of {generator.path}, step {generator.step}"
    else:
        require_judge(config.data.path, rubric)
    if config.data.path is not None:
        items, need = _read(config, config.data.path, text)
        facts["data"] = f"{len(items)} {config.audit.split} items"
    facts["rollout limits"] = limits_text(settled(config.rollout, teacher, need), need)
    phases: tuple[Bundles, ...] = {"student": worker_bundles(config.student)}, labeling_bundles(config.rollout)
    if generator is not None:
        phases = *phases, {"generator": worker_bundles(config.images)}
    return Plan(_Found(root, student, teacher, text, rubric, items, need, generator), facts, phases=phases)


def _read(config: AuditConfig, folder: Path, text: JudgeText) -> tuple[list[AnnotatedImage], Need | None]:
    check = JudgeItemCheck.of_engine(text, config.rollout)
    return load_checked_split(folder, config.audit.split, check)[0], check.need


def _audit(config: AuditConfig, found_before: _Found, started: Started) -> None:
    from zr_ray.judging.label import label_items

    c, run, started_at = config.audit, started.run, started.started_at
    student, teacher = found_before.student, found_before.teacher
    write_teacher(run, teacher)
    run.write_json(STUDENT_FILE, {"folder": str(student), "sha256": judge_hash(student)})
    text, rubric = found_before.text, found_before.rubric
    bins = torch.tensor(rubric.bins, dtype=torch.float64)
    items, need = found_before.items, found_before.need
    if items is None:
        made_by = found_before.generator
        if made_by is None:
            folder = data_folder(config.data, run.path)
        else:
            folder = run_images(made_by, config.images, found_before.root, run.run_id, config.run.wait_for_nodes_s)
        items, need = _read(config, folder, text)
    pool = draw(items, c.pool_items, config.run.seed)
    say(f"the student {student} scores {len(pool)} items")
    log_q = score_pool(run, student, pool, config, rubric)
    chosen = sample((log_q.exp() @ bins).mean(-1), c, config.run.seed, [item.group for item in pool])
    items = [pool[i] for i in [*chosen["random"], *chosen["highest"]]]
    labels = open_labels(config, teacher, text, found_before.root)
    known = label_items(items, labels, teacher, settled(config.rollout, teacher, need), config.label, say)

    found = {}
    for name, members in chosen.items():
        if members:
            own = [pool[i] for i in members]
            found[name] = compared(
                mean_log_q(labeled(own, known, rubric)),
                log_q[members],
                own,
                rubric,
                c.bootstrap_resamples,
                config.run.seed,
            )
    members = [*chosen["random"], *chosen["highest"]]
    # order inside a prompt: of the prompts drawn at random with all their images, whether favorites or not
    drawn = {pool[i].group for i in chosen["random"]}
    whole = [i for i in sorted(members) if pool[i].group in drawn]
    own = [pool[i] for i in whole]
    taught = mean_log_q(labeled(own, known, rubric))
    order = three_way(
        log_q[whole].exp() @ bins, taught.exp() @ bins, own, rubric, c.bootstrap_resamples, config.run.seed
    )
    worst = worst_items(mean_log_q(labeled(items, known, rubric)), log_q[members], items, rubric, c.worst)
    _keep_images(run, worst)
    again, useless = drifted(order, c.pair_limit)
    problems = beyond(found, c) + again
    identities = {
        "student": {"folder": str(student), "sha256": judge_hash(student)},
        "teacher": {"folder": str(teacher), "sha256": judge_hash(teacher)},
    }
    report = identities | {
        "pool": len(pool),
        "samples": found,
        "worst": worst,
        "order": order,
        "reference": reference_name(own),
        "problems": problems,
        "teacher_problems": useless,
        "redistill": redistill_command(config, found_before, run) if problems else None,
        "wall_s": time.time() - started_at,
    }
    run.write_json("audit.json", report)
    path = run.write_text("audit.md", markdown(report))
    say(markdown(report))
    if problems:
        raise JudgeError(
            f"the student is beyond the audit's limits: {'; '.join(problems)}; see {path}, and distil it again:"
            f" {report['redistill']}"
        )
    say(f"within the limits after {duration(time.time() - started_at)}; report {path}")


def draw(items: Sequence[AnnotatedImage], count: int, seed: int) -> list[AnnotatedImage]:
    """`count` items at random without repetition, in their order; all if there are no more."""
    kept = np.random.default_rng((seed, 1)).permutation(len(items))[:count]
    return [items[i] for i in sorted(kept.tolist())]


def sample(mu: Tensor, c: AuditSection, seed: int, groups: Sequence[str] | None = None) -> dict[str, list[int]]:
    """{"random": indices, "highest": indices}, disjoint; "highest" from the tenth with the highest mean score, "random"
    prompt by prompt.

    Args: mu: [I] the student's score, mean over dimensions. groups: [I], items of one are of one prompt; None: every
    item is of its own."""
    rng = np.random.default_rng((seed, 2))
    count = min(c.items, len(mu))
    top = mu.argsort(descending=True, stable=True)[: max(1, len(mu) // 10)].tolist()
    highest = [top[i] for i in rng.permutation(len(top))[: round(c.highest_frac * count)]]
    members: dict[object, list[int]] = {}
    for i in sorted(set(range(len(mu))) - set(highest)):
        members.setdefault(groups[i] if groups is not None else i, []).append(i)
    drawn = list(members.values())
    random = [i for n in rng.permutation(len(drawn)) for i in drawn[n]][: count - len(highest)]
    return {"random": random, "highest": highest}


def reference_name(items: Sequence[AnnotatedImage]) -> str | None:
    """What the reference of `three_way` is on these items; None if they have none."""
    if any(item.truth for item in items):
        return "verifier, or what the simulated world knows"
    return "annotators" if any(item.scores for item in items) else None


def redistill_command(config: AuditConfig, found: _Found, run: RunFolder) -> str:
    """The command line that distils this student again, with the images and labels of this audit."""
    if found.generator is not None:
        same = ("prompts", "per_prompt", "held_out_frac", "seed")
        images = [f"images.{name}={getattr(config.images, name)}" for name in same]
        data = [f"images.of={found.generator.path}", *images]
    else:
        data = [f"data.path={config.data.path or run.path / 'data'}"]
    labels = [f"label.traces={config.label.traces}", f"label.seed={config.label.seed}"]
    judges = [f"judge.path={found.student}", f"teacher.path={found.teacher}"]
    job = ["python", "jobs/risd.py", "--config", "jobs/configs/redistill.yaml"]
    return shlex.join([*job, *judges, *data, *labels])


def worst_items(
    teacher: Tensor, student: Tensor, items: Sequence[AnnotatedImage], rubric: Rubric, count: int
) -> list[dict]:
    """The `count` largest |mu student - mu teacher|, one entry per item and dimension. teacher, student: [I, D, K] log
    q."""
    bins = torch.tensor(rubric.bins, dtype=torch.float64)
    ours, theirs = student.exp() @ bins, teacher.exp() @ bins
    gap = (ours - theirs).abs().nan_to_num(-1.0)
    order = gap.flatten().argsort(descending=True, stable=True)[:count].tolist()
    found = []
    for i, d in (divmod(index, len(rubric.dimensions)) for index in order):
        if gap[i, d] < 0:
            break
        item = {"id": items[i].id, "prompt": items[i].prompt, "image": str(items[i].image)}
        item["dimension"] = rubric.dimensions[d]
        found.append(item | {"student": round(float(ours[i, d]), 3), "teacher": round(float(theirs[i, d]), 3)})
    return found


def beyond(found: dict[str, dict], c: AuditSection) -> list[str]:
    """What breaks the limits, in words."""
    problems = []
    for name, key, limit, what in (
        ("random", "mu_gap", c.mu_gap_limit, "mean |mu student - mu teacher| of random items"),
        ("highest", "mu_bias", c.bias_limit, "mean (mu student - mu teacher) of its favorites"),
    ):
        for dimension, entry in [
            ("all dimensions", found.get(name, {}).get("pooled", {})),
            *found.get(name, {}).get("dimensions", {}).items(),
        ]:
            if entry.get(key) is not None and entry[key] > limit:
                problems.append(f"{what}, {dimension}: {entry[key]:.2f} points, limit {limit:g}")
    return problems


def _keep_images(run: RunFolder, worst: list[dict]) -> None:
    """Copy the worst images into the run folder: a generator's output may not stay where it was."""
    for n, entry in enumerate(worst):
        source = Path(entry["image"])
        entry["copy"] = f"examples/worst-{n:02d}{source.suffix}"
        shutil.copyfile(source, run.examples / Path(entry["copy"]).name)
