"""Which failures of a training are lost ranks, and which the loop raised itself."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from zr_ray.errors import NonFiniteError, StoppedError
from zr_ray.run.learners import lost_rank


def failed(**ranks) -> WorkerGroupError:
    return WorkerGroupError("failed", {int(rank[1:]): error for rank, error in ranks.items()})


def test_a_rank_that_died_takes_its_peers_with_it():
    alone = RuntimeError("[enforce fail at gloo] Connection closed by peer")
    died = WorkerHealthCheckFailedError("worker 1 died", ActorDiedError())
    assert lost_rank(failed(r0=alone, r1=died)) == "rank 1: WorkerHealthCheckFailedError"
    assert lost_rank(failed(r0=WorkerHealthCheckTimeoutError("frozen"))) == "rank 0: WorkerHealthCheckTimeoutError"
    assert lost_rank(failed(r0=ActorDiedError())) == "rank 0: ActorDiedError"


def test_what_the_loop_raised_is_no_loss():
    assert lost_rank(failed(r0=NonFiniteError("loss"))) is None
    assert lost_rank(failed(r0=ValueError("a bug"), r1=RuntimeError("Connection closed by peer"))) is None
    wrapped = RayTaskError("train", "traceback", StoppedError("stopped on request")).as_instanceof_cause()
    assert lost_rank(failed(r0=wrapped, r1=ActorDiedError())) is None, "the run ends as it was told to"
    assert lost_rank(RuntimeError("no training at all")) is None
