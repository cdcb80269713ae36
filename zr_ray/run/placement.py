"""Asks Ray for the resources of a run: feasibility first, then fleets of actors, then Ray Train for the learners.

Ray Data (`judging/label.py`), Ray Serve (`serving/application.py`) and the tasks of an audit (`loops/audit.py`) ask for
what they declare themselves. Nothing expensive starts before `check_feasible` passes. Waits have deadlines and say what
is missing.
Left out on purpose: scheduling. Placement groups and Ray Train place, restart and release.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from zr_ray.config.sections import LearnerSection, WorkerSection
from zr_ray.config.t2i import ActorSection
from zr_ray.errors import PlacementError
from zr_ray.run.observe import duration, say, wait_for
from zr_ray.run.room import HANDOVER_S, Room, release_lock, wait_for_group
from zr_ray.run.shortage import bundle_text, bundles_text, held_text, missing_text
from zr_ray.run.stop import checkpoint_first
from zr_ray.startup.torchvision_shim import child_environment

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
    ) -> None:
        """Reserve, start, and wait until every actor has answered `describe()`.

        Args: actor_class: a plain class with `describe()`. section: how many, and what each asks for. name:
            "<run>/<role>", of the group and, numbered, of the actors. arguments: of the class, the same for every
            actor. environment: variables of the actors' processes. start_deadline_s: until all have answered.
            group: granted already, one bundle an actor, for example `Room.take(role)`; None asks for one here.
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


def learner_environment(config: WorkerSection, nodes: int) -> dict[str, str]:
    """Environment of a learner process; must be set before torch and DeepSpeed are imported."""
    environment = child_environment() | {
        "OMP_NUM_THREADS": str(config.threads),
        "TORCH_EXTENSIONS_DIR": os.environ.get(
            "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "zr_ray" / "torch_extensions")
        ),
        # DeepSpeed looks for ninja on PATH
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if config.gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
        # glibc otherwise gives the pages of large activations back after every micro-batch and faults them in again
        # (LOG.md, 2026-11-22)
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    if nodes == 1:
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return environment


START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""What Ray Train's controller reads its deadline for a placement group from."""


def run_learners(
    loop: Callable[[dict], None],
    task,
    config: LearnerSection | ActorSection,
    run_path: Path,
    run_id: str,
    room: Room | None = None,
    role: str = "learner",
) -> None:
    """Run `loop(task)` on every learner rank under Ray Train and wait for the end.

    Args: room: what the job reserved; Ray Train, which places itself, is handed `role`, and the next job may look for
        room once the first rank runs.
    Raises: PlacementError if Ray Train did not get its resources in time; what the loop raised."""
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, get_context
    from ray.train.torch import TorchConfig, TorchTrainer

    def begin(loop_config: dict) -> None:
        if get_context().get_world_rank() == 0:
            release_lock(run_id)
        loop(loop_config)

    os.environ[START_TIMEOUT] = str(HANDOVER_S)  # its resources were reserved until a moment ago
    if room is not None:
        room.hand_over(role)
    trainer = TorchTrainer(
        begin,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if config.gpus > 0 else "gloo", timeout_s=int(config.deadline_s)),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus > 0,
            resources_per_worker=bundle(config.cpus, config.gpus, config.resource),
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=str(run_path / "ray_train"),
            # Ray Train's default, -1, asks for the resources again for ever and says nothing
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={"env_vars": learner_environment(config, len(living_nodes()))},
        ),
    )
    try:
        with checkpoint_first(run_path):
            trainer.fit()
    except ControllerError as error:
        wanted = worker_bundles(config)
        raise PlacementError(
            f"Ray Train could not start {config.workers} learner(s), it wanted {bundles_text(wanted)}:"
            f" {missing_text(wanted)}; {held_text(f'{run_id}/{role}')}; {str(error.controller_failure).splitlines()[0]}"
        ) from error
