"""What a reward refresh needs before a run starts: its teacher, checked; what it will ask Ray for, phase by phase; and
the configuration of its distillations, which are jobs/risd.py's.

Training waits while a look goes on, so no phase holds the diffusion actors: a look uses what they leave. The service
stays, and while it is updated it holds every replica twice. Left out on purpose: doing it; see `refresh.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zr_ray.config.risd import RisdConfig, RisdSection, TeacherSection
from zr_ray.config.sections import CheckpointSection, EvaluationSection, JudgeSection, TrackedRunSection
from zr_ray.config.t2i import T2iConfig
from zr_ray.errors import ConfigError
from zr_ray.loops.distillation import find_teacher, settle_teacher, shared_rubric
from zr_ray.loops.reward_versions import RewardVersions
from zr_ray.loops.training import limits_fact
from zr_ray.models.identity import judge_hash
from zr_ray.run.folder import RunFolder, default_root
from zr_ray.run.launch import Bundles
from zr_ray.workers.lora import check_lora

Phases = tuple[Mapping[str, list[dict[str, float]]], ...]


@dataclass(frozen=True)
class RefreshPlan:
    """What the check of a run with refresh finds."""

    teacher: Path
    first: Path
    """Folder of version 0 of the student."""
    facts: dict[str, str]
    inputs: dict[str, str]
    """As `Plan` has them."""
    phases: tuple[Bundles, ...]
    """What a look holds beside the service, one phase after the other."""


def plan_refresh(
    config: T2iConfig, resumed: RunFolder | None, referee: Path | None, first: Path, service: Bundles
) -> RefreshPlan:
    """Check the teacher of `reward.refresh`, and plan.

    Args: resumed: the run that goes on, whose teacher stays. referee: the judge that watches the run. first: the judge
        that the run's service begins with. service: role -> bundles of the service's replicas.
    Raises: JudgeError or CheckpointError if there is no such teacher, or it does not share the student's rubric;
        ConfigError if it is the referee: what the reward is distilled from is no independent witness."""
    from zr_ray.judging.label import labeling_bundles
    from zr_ray.run.placement import worker_bundles

    c, root = config.reward.refresh, config.run.root or default_root()
    teacher = settle_teacher(resumed, find_teacher(c.teacher, root))
    shared_rubric(teacher, first)
    check_lora(first, c.learner)
    sha256 = judge_hash(teacher)
    if referee is not None and sha256 == judge_hash(referee):
        raise ConfigError(
            f"the referee must not be the teacher that the reward is distilled from, both are {teacher}; name another"
            " held_out.referee or reward.refresh.teacher"
        )
    if resumed is not None:
        RewardVersions(resumed.path).judge(first)  # refuses a version that is gone
    facts = {
        "reward refresh": f"a look every {c.every_steps} steps, at most {c.most} distillations of {teacher}; training"
        " waits meanwhile",
        "refresh engines": limits_fact(c.rollout, teacher, None),
    }
    phases = (
        {**service, "generator": worker_bundles(c.images)},
        {**service, **labeling_bundles(c.rollout)},
        {**service, "learner": worker_bundles(c.learner)},
        {role: [*bundles, *bundles] for role, bundles in service.items()},
    )
    return RefreshPlan(teacher, first, facts, {"reward.refresh.teacher": sha256}, phases)


def distillation_config(config: T2iConfig, run: RunFolder, number: int, judge: Path, teacher: Path) -> RisdConfig:
    """Configuration of a run's distillation `number` (from 1): a run folder of its own below the run's, from `judge`,
    on the run's pool, stopped by prompts that it does not learn from."""
    c, settings, folder = config.reward.refresh, config.run, RewardVersions(run.path).folder
    return RisdConfig(
        run=TrackedRunSection(
            name=f"{run.run_id}-refresh-{number}",
            root=folder / "distillations",
            seed=settings.seed,
            gpu_gib=settings.gpu_gib,
            wait_for_nodes_s=settings.wait_for_nodes_s,
            wait_for_room_s=settings.wait_for_room_s,
            trackers=(),
        ),
        judge=JudgeSection(path=str(judge)),
        teacher=TeacherSection(path=str(teacher)),
        images=c.images,
        label=c.label.model_copy(update={"path": c.label.path or folder / "labels"}),
        rollout=c.rollout,
        learner=c.learner,
        evaluation=EvaluationSection(every_steps=c.evaluate_steps),
        checkpoint=CheckpointSection(every_steps=2 * c.evaluate_steps),
        risd=RisdSection(steps=c.steps, items_per_step=c.items_per_step, patience=c.patience),
    )


def distillation_phases(told: RisdConfig) -> Phases:
    """What a distillation holds: first what labels, then what learns."""
    from zr_ray.judging.label import labeling_bundles
    from zr_ray.run.placement import worker_bundles

    return labeling_bundles(told.rollout), {"learner": worker_bundles(told.learner)}
