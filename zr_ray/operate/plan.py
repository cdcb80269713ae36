"""Which node type holds which worker of a job, before anything is started or paid for.

    python -m zr_ray plan gdso --config jobs/configs/gdso_tiny.yaml --cluster cluster/aws.yaml learner.gpus=1 ...

Refuses, with the reason, what the cluster file can never hold: a worker that fits no node type, more nodes than its
max_workers, weights and optimizer state beyond the GPU's memory. Prices are left out: they change, and quotas are
unknown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zr_ray.config.loader import load_config
from zr_ray.config.t2i_reward import RewardSection
from zr_ray.config.workers import WorkerSection
from zr_ray.errors import PlacementError
from zr_ray.models.memory import (
    Estimate,
    check_memory,
    judge_shape,
    learner_memory,
    memory_text,
    replica_memory,
    rollout_memory,
)
from zr_ray.operate.cluster_file import NodeType, node_types
from zr_ray.operate.jobs import JOBS, named_run


@dataclass(frozen=True)
class Role:
    """What one kind of worker of a job asks for."""

    name: str
    bundle: dict[str, float]
    """Resources of one worker."""
    workers: int
    section: Any
    """Its section of the configuration."""


@dataclass(frozen=True)
class Plan:
    """Where the workers of a job go."""

    placed: dict[str, str]
    """Role -> name of the node type that holds its workers."""
    nodes: dict[str, int]
    """Node type -> nodes at the job's peak, all roles together."""


def roles_of(config) -> list[Role]:
    """The roles of a job's configuration, in the order of its sections."""
    from zr_ray.config.serve import ReplicaSection, ServedTeacherSection
    from zr_ray.run.placement import bundle

    roles = []
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, WorkerSection):
            workers = section.workers
        elif isinstance(section, ReplicaSection):
            workers = section.max_replicas or section.replicas
        elif isinstance(section, ServedTeacherSection) and section.path is not None:
            workers = section.replicas
        else:
            continue
        roles.append(Role(name, bundle(section.cpus, section.gpus, section.resource), workers, section))
    for source in getattr(config, "sources", ()):
        workers = source.max_replicas or source.replicas
        roles.append(Role(source.name, bundle(source.cpus, source.gpus, source.resource), workers, source))
    return roles + _reward_roles(getattr(config, "reward", None))


def _reward_roles(reward: RewardSection | None) -> list[Role]:
    """Replicas of the service that a text-to-image job starts; none where the reward is somebody else's, or a function
    in the actors."""
    from zr_ray.run.placement import bundle

    if reward is None or reward.target is not None or reward.function is not None:
        return []
    served: dict[str, Any] = {f"reward-{source.name}": source for source in reward.sources} or {"reward": reward}
    return [Role(n, bundle(s.cpus, s.gpus, s.resource), s.replicas, s) for n, s in served.items()]


def holds(node: dict[str, float], bundle: dict[str, float]) -> bool:
    """Whether a node that offers `node` has room for `bundle`."""
    return all(node.get(resource, 0.0) >= amount - 1e-9 for resource, amount in bundle.items())


def make_plan(roles: list[Role], types: list[NodeType]) -> Plan:
    """Put every worker of every role on a node, opening nodes as needed. Raises PlacementError naming what cannot be
    placed.

    Nodes are shared between roles, as Ray does it; each worker goes to the first open node with room, else to a new
    node of the type that fits it most tightly. The order is largest bundle first."""
    open_nodes: list[tuple[str, dict[str, float]]] = []
    placed: dict[str, str] = {}
    for role in sorted(roles, key=lambda r: (-r.bundle.get("GPU", 0.0), -r.bundle.get("CPU", 0.0))):
        fitting = [t for t in types if holds(t.resources, role.bundle)]
        if not fitting:
            raise PlacementError(_no_type(role, types))
        fitting.sort(key=lambda t: (t.resources.get("GPU", 0.0), t.resources.get("CPU", 0.0)))
        for _ in range(role.workers):
            room = next((n for n in open_nodes if holds(n[1], role.bundle)), None)
            if room is None:
                opened = {t.name: sum(name == t.name for name, _ in open_nodes) for t in fitting}
                kind = next((t for t in fitting if opened[t.name] < t.most), None)
                if kind is None:
                    raise PlacementError(_too_many(role, fitting))
                room = (kind.name, dict(kind.resources))
                open_nodes.append(room)
            for resource, amount in role.bundle.items():
                room[1][resource] -= amount
            placed.setdefault(role.name, room[0])
    return Plan(placed, {t.name: n for t in types if (n := sum(name == t.name for name, _ in open_nodes))})


def _text(bundle: dict[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in bundle.items()) + "}"


def _no_type(role: Role, types: list[NodeType]) -> str:
    lines = []
    for kind in types:
        lacks = [f"{name} {kind.resources.get(name, 0.0):g} of {amount:g}" for name, amount in role.bundle.items()
                 if kind.resources.get(name, 0.0) < amount]  # fmt: skip
        lines.append(f"{kind.name}{f' ({kind.machine})' if kind.machine else ''} has {', '.join(lacks)}")
    return (
        f"no node type can hold a {role.name} worker {_text(role.bundle)}: {'; '.join(lines)}. "
        f"Lower {role.name}.cpus or {role.name}.gpus, set {role.name}.resource, or give a node type more"
    )


def _too_many(role: Role, fitting: list[NodeType]) -> str:
    limits = ", ".join(f"{t.name} at most {t.most}" for t in fitting)
    return (
        f"{role.workers} {role.name} workers {_text(role.bundle)} need more nodes than the file allows ({limits}). "
        f"Lower {role.name}.workers, or raise max_workers"
    )


def estimates(config, roles: list[Role], plan: Plan, types: list[NodeType]) -> dict[str, Estimate]:
    """Role -> GPU memory of one worker, for roles with a GPU of a known kind."""
    from zr_ray.models.judge_text import judge_folder

    known, found = {t.name: t for t in types}, {}
    for role in roles:
        gpu_gib = known[plan.placed[role.name]].gpu_gib
        if role.bundle.get("GPU", 0.0) == 0:
            continue
        path = _judge_of(config, role)
        if path is None:  # a generator, a CLIP scorer, a function
            continue
        # which student is the newest only the cluster's run folders know; all distilled from one have its shape
        shape = judge_shape(judge_folder("student" if path == "latest" else path))
        if role.name == "learner":
            algorithm = getattr(config, "gdso", None)
            found[role.name] = learner_memory(shape, role.section, algorithm is not None and algorithm.beta_kl > 0)
        elif role.name == "rollout":
            found[role.name] = rollout_memory(shape, role.section, gpu_gib * min(1.0, role.bundle["GPU"]))
        elif role.name == "replica" or role.name.startswith("reward"):
            found[role.name] = replica_memory(shape, role.section.dtype)
    return found


def _judge_of(config, role: Role) -> str | None:
    """Path of the judge that a worker holds, None for what is no judge."""
    if role.name.startswith("reward"):
        return role.section.judge
    return config.judge.path if hasattr(config, "judge") else None


def describe(config, path: Path) -> list[str]:
    """The plan as lines. Raises PlacementError for what can never be placed."""
    roles, types = roles_of(config), node_types(path)
    plan = make_plan(roles, types)
    known = {t.name: t for t in types}
    memory = estimates(config, roles, plan, types)
    lines = []
    for role in roles:
        kind = known[plan.placed[role.name]]
        lines.append(
            f"{role.name}: {role.workers} x {_text(role.bundle)} on {kind.name}"
            + (f" ({kind.machine})" if kind.machine else "")
        )
        if role.name not in memory:
            continue
        estimate, gpu_gib = memory[role.name], kind.gpu_gib * min(1.0, role.bundle["GPU"])
        check_memory(role.name, estimate, gpu_gib)
        lines.append("    memory " + memory_text(estimate, gpu_gib))
    peak = ", ".join(f"{count} x {name} of at most {known[name].most}" for name, count in plan.nodes.items())
    lines.append(f"nodes at peak: {sum(plan.nodes.values())} ({peak}), and the head")
    return lines


def main(argv: list[str]) -> int:
    """Exit code. Raises ZrRayError for everything a user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m zr_ray plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--config", type=Path, help="YAML file of the job")
    parser.add_argument("--cluster", type=Path, required=True, help="`ray up` file or KubeRay manifest")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    for line in describe(
        load_config(JOBS[args.job].config_class, args.config and named_run(args.config), args.overrides), args.cluster
    ):
        print(line)
    return 0
