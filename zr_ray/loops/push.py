"""One verified weight push, seen from a learner rank (see `weights.py`)."""

from __future__ import annotations

from functools import partial

from zr_ray.config.sections import SyncTolerance, WeightsSection
from zr_ray.data.encoded import encoded_image
from zr_ray.errors import NonFiniteError, WeightSyncError
from zr_ray.judging.ask import question
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.records import AnnotatedImage
from zr_ray.workers.engine import REMEDY
from zr_ray.workers.learner import Learner
from zr_ray.workers.recovery import Probe, Recovery
from zr_ray.workers.weights import (
    Checksum,
    Difference,
    ObjectStoreTransport,
    WeightTransport,
    check_probe,
    held_problem,
    make_buckets,
    probe_difference,
)


class WeightPush:
    """Sends a learner's weights to all rollout workers and proves that they arrived. Every rank calls it at the same
    point.

    The proof: of one item's questions, the first tokens of the greedy reasoning and the score without
    reasoning. A worker that is lost on the way, or later, is brought back by `recovery`."""

    def __init__(
        self,
        recovery: Recovery,
        text: JudgeText,
        item: AnnotatedImage,
        config: WeightsSection,
        tolerance: SyncTolerance,
        deadline_s: float,
        transport: WeightTransport | None = None,
    ) -> None:
        """recovery: of ALL rollout workers of the run. item: what the probe asks about. tolerance: what the probe may
        differ by."""
        self.recovery, self.config = recovery, config
        self.workers = recovery.workers
        self.tolerance, self.deadline_s = tolerance, deadline_s
        image = encoded_image(item.image)
        self.reasoned, self.direct = (
            [question(text, item, d, 0, direct, image) for d in text.rubric.dimensions] for direct in (False, True)
        )
        self.transport = transport or ObjectStoreTransport()

    @classmethod
    def of_run(cls, task, recovery: Recovery, text: JudgeText, item: AnnotatedImage) -> WeightPush:
        """The pushes of a run. task: has config with weights, sync_tolerance, rollout. recovery: of its rollout
        workers. item: what the probe asks about."""
        c = task.config
        return cls(recovery, text, item, c.weights, c.sync_tolerance, c.rollout.deadline_s)

    def __call__(self, learner: Learner, version: int) -> dict[str, float]:
        """Push as `version`; returns `sync/*` (nats). Raises NonFiniteError, before anything is sent, if a
        weight is not finite, and if the learner's own log-probs are not; WeightSyncError on a breach."""
        learner.require_finite_weights()
        # lazy: parameters are gathered while the buckets are iterated
        sent = Checksum()
        buckets = make_buckets(sent.over(learner.named_weights()), self.config.bucket_mib * 2**20)
        if learner.rank == 0:
            self.recovery.begin(version, ())
            for worker in self.workers:
                worker.release_weights.remote()
            handles = self.transport.send(buckets)
            self.recovery.begin(version, handles)
            calls = [(w, partial(w.update_weights.remote, version, handles)) for w in self.workers]
            held = self.recovery.settle(calls, self.deadline_s, f"the push of weights {version}")
            sums = [(w, w.weights_checksum.remote) for w in self.workers]
            received = self.recovery.settle(sums, self.deadline_s, f"the checksum of weights {version}")
        else:
            self.recovery.begin(version, ())
            held, received = [version], []  # only rank 0 hears from the engines; it would raise
            for _ in learner.named_weights():  # ZeRO-3 gathers on every rank
                pass
        learner.barrier()  # nobody asks an engine before all engines hold the version
        if not self.config.verify:
            return {}
        # every rank probes: under ZeRO-3 the learner's forward is a collective, and all must stop together
        difference, answers = self._probe(learner)
        difference = Difference(
            *(learner.reduce_max(v) for v in (difference.largest, difference.mean, difference.high))
        )
        problem = held_problem(version, held, sent.digest, received) if learner.rank == 0 else ""
        if learner.reduce_max(float(bool(problem))):  # rank 0 alone would leave the others waiting
            raise WeightSyncError(problem or f"rank 0 found the push of version {version} broken; see its message")
        check_probe(difference, self.tolerance, version)
        self.recovery.proved(answers, self.config.probe_tokens, self.tolerance)
        return difference.metrics() | {"sync/version": float(version)}

    def _probe(self, learner: Learner) -> tuple[Difference, Probe]:
        """Every engine's answers against the learner's log-probs of the same tokens; every rank computes the same.

        Returns: how far they are apart; the questions with the first engine's answers."""
        version, tokens = self.recovery.version, self.config.probe_tokens
        asked = [(w, partial(w.generate.remote, self.reasoned, 1, 0.0, tokens, version)) for w in self.workers]
        asked += [(w, partial(w.score.remote, self.direct, version)) for w in self.workers]
        answers = self.recovery.settle(asked, self.deadline_s, "the weight probe")
        reasoned, direct = answers[: len(self.workers)], answers[len(self.workers) :]
        judgements = [group[0] for groups in reasoned for group in groups] + [
            judgement for scores in direct for judgement in scores
        ]
        requests = [
            request for questions in (self.reasoned, self.direct) for _ in self.workers for request in questions
        ]
        rows = [
            Row(q.token_ids, q.image, (a.token_ids,), (a.score_index,))
            for q, a in zip(requests, judgements, strict=True)
        ]
        outputs = learner.forward(rows)
        if not (outputs.logprobs.isfinite().all() and outputs.score_logprobs.isfinite().all()):
            raise NonFiniteError(f"the learner's log-probs of the probe questions are not finite; {REMEDY}")
        probe = Probe(self.reasoned, self.direct, [group[0] for group in reasoned[0]], direct[0])
        return probe_difference(judgements, outputs.logprobs, outputs.score_logprobs), probe
