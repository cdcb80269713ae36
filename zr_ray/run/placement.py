"""Asks Ray for the resources of a run: feasibility first, then fleets of actors. Learners: `learners.py`.

Ray Data (`judging/label.py`), Ray Serve (`serving/application.py`) and the tasks of an audit (`loops/audit.py`) ask for
what they declare themselves. Nothing expensive starts before `check_feasible` passes. Waits have deadlines and say what
is missing.
Left out on purpose: scheduling. Placement groups and Ray Train place, restart and release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from zr_ray.config.workers import WorkerSection
from zr_ray.errors import PlacementError
from zr_ray.run.observe import duration, say, wait_for
from zr_ray.run.room import wait_for_group
from zr_ray.run.shortage import bundle_text

ROLE_SHARE = 0.001
"""What one worker takes of its node's custom resource: enough to be placed there, so little that it never runs out."""


def bundle(cpus: float, gpus: float, resource: str | None = None) -> dict[str, float]:
    """Resources of one worker as a placement-group bundle. resource: custom resource its node must offer."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0} | custom(resource)


def custom(resource: str | None) -> dict[str, float]:
    """The custom-resource part of a bundle."""
    return {resource: ROLE_SHARE} if resource else {}


def check_feasible(
    wanted: Mapping[str, Sequence[dict[str, float]]], nodes: Sequence[dict[str, float]], wait_for_nodes_s: float
) -> None:
    """Raise PlacementError if a bundle fits no node, or all bundles together exceed the cluster.

    Args: wanted: role -> its bundles. nodes: total resources of every living node. wait_for_nodes_s: above 0 the
        cluster may grow (autoscaler), so a shortage is only said, not refused; the wait for the placement group has
        that deadline."""
    for role, bundles in wanted.items():
        for i, one in enumerate(bundles):
            if not any(all(node.get(r, 0.0) >= amount for r, amount in one.items()) for node in nodes):
                best = ", ".join(f"{{{', '.join(f'{r}: {n.get(r, 0.0):g}' for r in one)}}}" for n in nodes) or "no node"
                _refuse(f"no node can hold {role} bundle {i} {bundle_text(one)}; nodes have {best}", wait_for_nodes_s)
                return
    total: dict[str, float] = {}
    for one in (b for bundles in wanted.values() for b in bundles):
        for resource, amount in one.items():
            total[resource] = total.get(resource, 0.0) + amount
    for resource, amount in total.items():
        have = sum(node.get(resource, 0.0) for node in nodes)
        if amount > have:
            parts = ", ".join(f"{len(b)} x {role} {bundle_text(b[0])}" for role, b in wanted.items() if b)
            _refuse(f"the job wants {amount:g} {resource} in all ({parts}), the cluster has {have:g}", wait_for_nodes_s)
            return


def _refuse(problem: str, wait_for_nodes_s: float) -> None:
    if wait_for_nodes_s > 0:
        say(f"{problem}; waiting up to {duration(wait_for_nodes_s)} for new nodes (run.wait_for_nodes_s)")
        return
    raise PlacementError(
        f"{problem}; lower rollout/learner workers, cpus or gpus, add nodes, or set run.wait_for_nodes_s on an"
        " autoscaling cluster"
    )


def worker_bundles(section: WorkerSection) -> list[dict[str, float]]:
    """The bundles of one kind of worker."""
    return [bundle(section.cpus, section.gpus, section.resource)] * section.workers


def living_nodes() -> list[dict[str, float]]:
    """Total resources of every living node of the connected cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class Fleet:
    """Actors of one class, each in its own bundle of one placement group. A context manager: leaving it frees the
    resources."""

    def __init__(
        self,
        actor_class: type,
        section: WorkerSection,
        name: str,
        arguments: tuple,
        *,
        environment: Mapping[str, str],
        start_deadline_s: float,
        wait_for_nodes_s: float = 0.0,
        group: PlacementGroup | None = None,
        restarts: int = 0,
    ) -> None:
        """Reserve, start, and wait until every actor has answered `describe()`.

        Args: actor_class: a plain class with `describe()`. section: how many, and what each asks for. name:
            "<run>/<role>", of the group and, numbered, of the actors. arguments: of the class, the same for every
            actor. environment: variables of the actors' processes. start_deadline_s: until all have answered.
            group: granted already, one bundle an actor, for example `Room.take(role)`; None asks for one here.
            restarts: times that Ray starts a dead actor again in its bundle, with fresh state; its calls fail.
        Raises: PlacementError, DeadlineError, or what an actor raised at its start."""
        self._group = group or wait_for_group(worker_bundles(section), name, max(wait_for_nodes_s, 60.0))
        actor = ray.remote(actor_class)
        self.workers = [
            actor.options(
                name=f"{name}-{i}",
                num_cpus=section.cpus,
                num_gpus=section.gpus,
                resources=custom(section.resource),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=i),
                runtime_env={"env_vars": dict(environment)},
                max_restarts=restarts,
            ).remote(*arguments)
            for i in range(section.workers)
        ]
        try:
            self.places = wait_for(
                [w.describe.remote() for w in self.workers],
                start_deadline_s,
                f"{section.workers} actors of {name} to start",
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop the actors and release their resources."""
        for worker in self.workers:
            ray.kill(worker)
        remove_placement_group(self._group)
