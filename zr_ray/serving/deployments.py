"""The deployments of a reward service: what a replica of each holds, and what it asks Ray for.

    student      the judge                     teacher      a reasoning judge
    <source>     each of `sources`: a judge, a CLIP-family scorer or a function

Left out on purpose: calls, and the application around them; `application.py` has both.
"""

from __future__ import annotations

from pathlib import Path

from zr_ray.config.serve import ScaledSection, ServeConfig, ServedSourceSection
from zr_ray.run.placement import bundle, custom

STUDENT, TEACHER, GATEWAY, ROSTER = "student", "teacher", "gateway", "roster"
"""Deployment names inside an application, beside those of sources."""


def judge_names(config: ServeConfig) -> tuple[str, ...]:
    """Deployments that score, the one first that answers whoever names none."""
    own = ((STUDENT,) if config.judge.path is not None else ()) + tuple(source.name for source in config.sources)
    return own + ((TEACHER,) if config.teacher.path is not None else ())


def source_of(config: ServeConfig, name: str) -> ServedSourceSection | None:
    """The source of that name; None for student and teacher."""
    return next((source for source in config.sources if source.name == name), None)


def replica_of(config: ServeConfig, name: str) -> ScaledSection:
    """Batching and bounds of a deployment's replicas."""
    if name == TEACHER:
        return config.replica.model_copy(update={"batch_items": config.teacher.batch_items})
    return source_of(config, name) or config.replica


def held_worker(config: ServeConfig, name: str):
    """What a replica of a deployment holds, in the replica's process: check, answer, warm_up, identity."""
    limits = config.limits.bounds()
    if name == TEACHER:
        from zr_ray.models.judge_text import judge_folder
        from zr_ray.workers.reward_teacher import TeacherWorker, teacher_engine

        folder = judge_folder(config.teacher.path)
        return TeacherWorker(folder, teacher_engine(folder, config.teacher), config.teacher.traces, limits)
    import torch

    source, replica = source_of(config, name), replica_of(config, name)
    torch.set_num_threads(replica.threads)
    device = "cuda" if replica.gpus > 0 else "cpu"
    if source is not None and source.judge is None:
        from zr_ray.workers.scorer import ScorerWorker, scorer_of

        return ScorerWorker(scorer_of(source, replica.dtype, device), name, limits, device, replica.grad_items)
    from zr_ray.workers.reward import RewardWorker

    folder, _ = served_judge(config.judge.path if source is None else source.judge)
    return RewardWorker(folder, name, replica.dtype, device, replica.grad_items, limits)


def serve_options(config: ServeConfig, name: str) -> dict:
    """What Serve is told of a deployment: how many replicas, what each asks Ray for, how they come and go."""
    replica, teacher = replica_of(config, name), config.teacher
    if name == TEACHER:
        from zr_ray.config.workers import RolloutSection
        from zr_ray.workers.rollout import engine_environment

        environment = {"env_vars": engine_environment(RolloutSection(threads=teacher.threads, gpus=teacher.gpus))}
        scale: dict = {"num_replicas": teacher.replicas}
        actor = {"num_cpus": teacher.cpus, "num_gpus": teacher.gpus, "runtime_env": environment}
        actor["resources"] = custom(teacher.resource)
    else:
        actor = {"num_cpus": replica.cpus, "num_gpus": replica.gpus, "resources": custom(replica.resource)}
        autoscaling = {
            "min_replicas": replica.replicas,
            "initial_replicas": replica.replicas,
            "max_replicas": replica.max_replicas,
            "target_ongoing_requests": replica.target_ongoing,
        }
        scale = (
            {"num_replicas": replica.replicas} if replica.max_replicas is None else {"autoscaling_config": autoscaling}
        )
    return scale | {
        "name": name,
        "max_ongoing_requests": replica.max_ongoing,
        "max_queued_requests": replica.max_queued,
        "ray_actor_options": actor,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": replica.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_surge_percent": 100,  # an update never leaves the service without a judge
    }


def bundles_of(config: ServeConfig, prefix: str = "") -> dict[str, list[dict[str, float]]]:
    """Role -> what its replicas ask Ray for. prefix: before the deployment's name."""
    found = {}
    for name in judge_names(config):
        section = config.teacher if name == TEACHER else replica_of(config, name)
        found[prefix + name] = [bundle(section.cpus, section.gpus, section.resource)] * section.replicas
    return found


def served_judge(path: str) -> tuple[Path, str]:
    """(folder, what it is) of a configured judge. `student` is the built-in base judge as long as the package has no
    student. Raises JudgeError if there is no model in another folder."""
    from zr_ray.models.judge_text import BUILTIN_JUDGES, judge_folder

    if path == STUDENT and not (BUILTIN_JUDGES[STUDENT] / "config.json").is_file():
        return judge_folder("builtin"), "the built-in base judge (this checkout has no built-in student)"
    return judge_folder(path), f"the built-in {path}" if path in (STUDENT, "builtin") else path


def check_sources(config: ServeConfig) -> dict[str, str]:
    """Source -> hash of what answers. Raises JudgeError or ConfigError for what could not start."""
    from zr_ray.models.identity import judge_hash
    from zr_ray.models.judge_text import JudgeText
    from zr_ray.workers.scorer import clip_folder, function_hash

    found = {}
    for source in config.sources:
        if source.function is not None:
            found[source.name] = function_hash(source.function)
        elif source.clip is not None:
            found[source.name] = judge_hash(clip_folder(source.clip))
        else:
            folder, _ = served_judge(source.judge or "")
            JudgeText(folder)  # refuses labels that are not one token
            found[source.name] = judge_hash(folder)
    return found
