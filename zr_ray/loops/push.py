"""One verified weight push, seen from a learner rank (see `weights.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from zr_ray.config import WeightsSection
from zr_ray.models.judge import Row
from zr_ray.observe import wait_for
from zr_ray.records import JudgeRequest
from zr_ray.weights import ObjectStoreTransport, WeightTransport, check_probe, logprob_difference, make_buckets
from zr_ray.workers.learner import Learner


class WeightPush:
    """Sends a learner's weights to all rollout workers and proves that they arrived. Every rank calls it at the same point."""

    def __init__(
        self, workers: Sequence, probes: Sequence[JudgeRequest], config: WeightsSection, tolerance: float, deadline_s: float,
        transport: WeightTransport | None = None,
    ) -> None:  # fmt: skip
        """workers: ALL rollout workers of the run. probes: questions whose greedy answers are compared, nats within `tolerance`."""
        self.workers, self.probes, self.config = list(workers), list(probes), config
        self.tolerance, self.deadline_s = tolerance, deadline_s
        self.transport = transport or ObjectStoreTransport()

    def __call__(self, learner: Learner, version: int) -> dict[str, float]:
        """Push as `version`; returns `sync/max_abs_diff` (nats). Raises WeightSyncError on a breach."""
        buckets = make_buckets(learner.named_weights(), self.config.bucket_mib * 2**20)
        if learner.rank == 0:
            handles = self.transport.send(buckets)
            held = wait_for([w.update_weights.remote(version, handles) for w in self.workers], self.deadline_s, f"the push of weights {version}")
        else:
            held = [version] * len(self.workers)
            for _ in buckets:  # ZeRO-3 gathers on every rank
                pass
        learner.barrier()
        if not self.config.verify:
            return {}
        difference = learner.reduce_max(self._probe(learner))
        check_probe(difference, self.tolerance, version, held)
        return {"sync/max_abs_diff": difference, "sync/version": float(version)}

    def _probe(self, learner: Learner) -> float:
        """Every engine's greedy answers against the learner's log-probs of the same tokens; every rank computes the same."""
        asked = [worker.generate.remote(self.probes, 1, 0.0) for worker in self.workers]
        answers = [group[0] for groups in wait_for(asked, self.deadline_s, "the weight probe") for group in groups]
        rows = [
            Row(request.token_ids, request.image, (answer.token_ids,), (answer.score_index,))
            for request, answer in zip(self.probes * len(self.workers), answers, strict=True)
        ]
        outputs = learner.forward(rows)
        return logprob_difference(answers, outputs.logprobs, outputs.score_logprobs)
