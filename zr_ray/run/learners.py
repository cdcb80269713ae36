"""Learners under Ray Train, and what happens when one is lost.

    placed (their room was reserved) -> the loop runs on every rank
      -> a rank dies, or is ended because it hangs (`watchdog.py`; a frozen process is found by Ray Train's own check)
      -> Ray Train ends the other ranks; room is waited for again; the loop starts anew from the newest checkpoint

What the loop itself raises ends the run: it would raise it again. A node that Ray announces to take away is answered
by a checkpoint (`loops/journal.py`), and Ray Train starts the ranks elsewhere when it has gone.
Left out on purpose: going on with fewer ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ray.util.placement_group import remove_placement_group

from zr_ray.config.sections import RunSection
from zr_ray.config.t2i import ActorSection
from zr_ray.config.workers import LearnerSection, WorkerSection
from zr_ray.data.collector import collector_off, leave_alone
from zr_ray.errors import PlacementError, StoppedError, ZrRayError
from zr_ray.run.checkpoints import newest_step
from zr_ray.run.driver import causes
from zr_ray.run.observe import say
from zr_ray.run.placement import bundle, living_nodes, worker_bundles
from zr_ray.run.room import HANDOVER_S, Room, release_lock, wait_for_group
from zr_ray.run.shortage import bundles_text, held_text, missing_text
from zr_ray.run.stop import checkpoint_first, forget, is_requested
from zr_ray.run.watchdog import stacks_of
from zr_ray.startup.torchvision_shim import child_environment

START_TIMEOUT, FROZEN_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""What Ray Train's controller reads its deadlines from: for a placement group, and for a rank that does not answer."""
LOST = ("RayActorError", "ActorDiedError", "ActorUnavailableError", "NodeDiedError", "WorkerHealthCheckTimeoutError",
        "WorkerHealthCheckFailedError", "WorkerCrashedError")  # fmt: skip
"""Errors of a rank that is gone, in distinction to errors that its loop raised."""


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


def run_learners(
    loop: Callable[[dict], None],
    task,
    config: LearnerSection | ActorSection,
    run_path: Path,
    run_id: str,
    room: Room | None = None,
    role: str = "learner",
) -> None:
    """Run `loop(task)` on every learner rank under Ray Train and wait for the end; lost ranks are started again from
    the newest checkpoint, at most `config.restarts` times without a newer one.

    Args: task: has config.run. room: what the job reserved; Ray Train, which places itself, is handed `role`, and the
        next job may look for room once the first rank runs.
    Raises: PlacementError if Ray Train did not get its resources in time; StoppedError; what the loop raised."""
    from ray.train import WorkerGroupError

    os.environ[START_TIMEOUT] = str(max(HANDOVER_S, task.config.run.wait_for_nodes_s))
    os.environ[FROZEN_TIMEOUT] = str(config.deadline_s)
    forget(run_path)
    if room is not None:
        room.hand_over(role)  # its resources were reserved until now
    lost, step = 0, newest_step(run_path)
    with checkpoint_first(run_path):
        while True:
            try:
                return _fit(loop, task, config, run_path, run_id, role)
            except WorkerGroupError as error:
                why = lost_rank(error)
                if why is None:
                    raise
                if is_requested(run_path):
                    raise StoppedError(
                        f"stopped on request, and {role}s were lost meanwhile ({why}); the newest checkpoint is of step"
                        f" {newest_step(run_path)}; continue with --resume {run_id}"
                    ) from error
                before, step = step, newest_step(run_path)
                lost = 1 if step > before else lost + 1
                if lost > config.restarts:
                    raise
                _say_lost(why, role, run_path, step, lost, config.restarts)
                _wait_again(config, task.config.run, run_id, role)


def lost_rank(error: BaseException) -> str | None:
    """Which rank of a failed training was lost, and how, in a line; None if its loop raised an error of its own."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    gone = {
        rank: next((c for c in causes(failure) if type(c).__name__ in LOST), None) for rank, failure in failures.items()
    }
    named = {rank: cause for rank, cause in gone.items() if cause is not None}
    # ranks that are left alone fail too, with errors of their collective; an error of ours is why a rank ended
    raised = [c for failure in failures.values() for c in causes(failure) if isinstance(c, ZrRayError)]
    if not named or raised:
        return None
    return ", ".join(f"rank {rank}: {type(cause).__name__}" for rank, cause in sorted(named.items()))


def _say_lost(why: str, role: str, run_path: Path, step: int, lost: int, restarts: int) -> None:
    stacks = stacks_of(run_path)
    hung = f"; stacks of what hung: {', '.join(str(path) for path in stacks)}" if stacks else ""
    again = f"the checkpoint of step {step}" if step else "the beginning"
    say(f"{role} lost ({why}){hung}; going on from {again} ({lost} of {restarts})")


def _wait_again(config: LearnerSection | ActorSection, run: RunSection, run_id: str, role: str) -> None:
    """Until there is room for all ranks again: a lost node must be replaced, and others may have been quicker."""
    remove_placement_group(wait_for_group(worker_bundles(config), f"{run_id}/{role}", run.room_deadline_s))


def _fit(
    loop: Callable[[dict], None], task, config: LearnerSection | ActorSection, run_path: Path, run_id: str, role: str
) -> None:
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, get_context
    from ray.train.torch import TorchConfig, TorchTrainer

    with collector_off():
        held = ray.put(task)  # once: what is in a configuration is packed and unpacked at each hand-over

    def begin(loop_config: dict) -> None:
        if get_context().get_world_rank() == 0:
            release_lock(run_id)
        with collector_off():
            received = ray.get(loop_config["task"], timeout=config.deadline_s)
        leave_alone()
        loop({"task": received})

    trainer = TorchTrainer(
        begin,
        train_loop_config={"task": held},
        torch_config=TorchConfig(backend="nccl" if config.gpus > 0 else "gloo", timeout_s=int(config.deadline_s)),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus > 0,
            resources_per_worker=bundle(config.cpus, config.gpus, config.resource),
        ),
        run_config=RunConfig(
            name=run_id,
            storage_path=str(run_path / "ray_train"),
            # lost ranks are our business: Ray Train would repeat what the loop itself raised. Its default for the
            # controller, -1, asks for the resources again for ever and says nothing
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={"env_vars": learner_environment(config, len(living_nodes()))},
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        wanted = worker_bundles(config)
        raise PlacementError(
            f"Ray Train could not start {config.workers} learner(s), it wanted {bundles_text(wanted)}:"
            f" {missing_text(wanted)}; {held_text(f'{run_id}/{role}')}; {str(error.controller_failure).splitlines()[0]}"
        ) from error
