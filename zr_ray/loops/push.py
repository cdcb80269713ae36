"""One verified weight push, seen from a learner rank (see `weights.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from zr_ray.config.sections import SyncTolerance, WeightsSection
from zr_ray.data.encoded import encoded_image
from zr_ray.errors import NonFiniteError, WeightSyncError
from zr_ray.judging.ask import question
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.records import AnnotatedImage, Judgement, JudgeRequest
from zr_ray.run.observe import wait_for
from zr_ray.workers.engine import REMEDY
from zr_ray.workers.learner import Learner
from zr_ray.workers.recovery import Call, Probe, Recovery
from zr_ray.workers.transports import ObjectStoreTransport, WeightTransport, transport_of
from zr_ray.workers.weights import Checksum, Difference, check_probe, held_problem, probe_difference


@dataclass
class _UnderWay:
    """A push that has begun."""

    version: int
    sent: Checksum
    """Of what rank 0 sent; complete when all buckets have left."""
    weights: list[Call]
    """Of rank 0: every engine's update, then every engine's checksum."""
    weights_sent: list
    """Ray's references to their answers."""
    arrived: list | None = None
    """The answers, None until they were waited for."""
    probe: list[Call] = field(default_factory=list)
    probe_sent: list = field(default_factory=list)


class WeightPush:
    """Sends a learner's weights to all rollout workers and proves that they arrived. Every rank calls it at the same
    point.

    A push has two halves. `begin` puts weights, checksum and the proof's questions behind whatever an engine works on;
    `finish` waits for the answers and compares them with the learner, whose weights must not have changed since. What
    lies between them overlaps with the engines; calling the push does both at once. A broadcast holds `begin` up until
    the slowest engine is free.

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
        sleeps: bool = False,
    ) -> None:
        """recovery: of ALL rollout workers of the run. item: what the probe asks about. tolerance: what the probe may
        differ by. deadline_s: of each wait, from when it begins. sleeps: engines share their GPU with the learner, and
        leave it while it trains."""
        self.recovery, self.config = recovery, config
        self.workers = recovery.workers
        self.tolerance, self.deadline_s = tolerance, deadline_s
        image = encoded_image(item.image)
        self.reasoned, self.direct = (
            [question(text, item, d, 0, direct, image) for d in text.rubric.dimensions] for direct in (False, True)
        )
        self.transport = transport or ObjectStoreTransport(self.workers, config.bucket_mib * 2**20)
        self.sleeps = sleeps
        self._under_way: _UnderWay | None = None

    @classmethod
    def of_run(cls, task, recovery: Recovery, text: JudgeText, item: AnnotatedImage) -> WeightPush:
        """The pushes of a run. task: has config with weights, sync_tolerance, rollout, sleeps. recovery: of its rollout
        workers. item: what the probe asks about."""
        c = task.config
        transport = transport_of(recovery.workers, c.weights, c.rollout)
        return cls(recovery, text, item, c.weights, c.sync_tolerance, c.rollout.deadline_s, transport, c.sleeps)

    def __call__(self, learner: Learner, version: int) -> dict[str, float]:
        """Push as `version`, and wait for the proof. Returns, Raises: as `begin` and `finish`."""
        self.begin(learner, version)
        return self.finish(learner)

    def rest(self, learner: Learner) -> None:
        """Before training: engines that share their GPU with the learner leave it until the next push; others do
        nothing.

        Raises: DeadlineError if one does not get there."""
        if self.sleeps and learner.rank == 0:
            wait_for([w.sleep.remote() for w in self.workers], self.deadline_s, "engines to leave their GPU")

    def begin(self, learner: Learner, version: int) -> None:
        """Send the weights as `version`. One rank waits for nothing; several wait until all engines hold it, since an
        engine takes the calls of different ranks in any order.

        Raises: NonFiniteError, before anything is sent, if a weight is not finite."""
        learner.require_finite_weights()
        if self.sleeps:
            learner.give_back()
        sent, calls, references = Checksum(), [], []
        kept = self.config.transport == "object_store" or self.config.keep_copy
        if learner.rank == 0:
            self.transport.prepare(self.recovery)
        self.recovery.begin(version, (), kept)
        if learner.rank == 0:
            for worker in self.workers:
                worker.release_weights.remote()
            made = self.transport.send(learner, version, sent)
            self.recovery.begin(version, made.handles, kept)
            # repeated on an engine that was lost on the way, whatever the transport
            calls = [(w, partial(w.update_weights.remote, version, made.handles)) for w in self.workers]
            calls += [(w, w.weights_checksum.remote) for w in self.workers]
            references = made.references + [w.weights_checksum.remote() for w in self.workers]
        else:
            for _ in learner.named_weights():  # ZeRO-3 gathers on every rank
                pass
        push = self._under_way = _UnderWay(version, sent, calls, references)
        if learner.world > 1:
            self._arrive(push)  # only rank 0 hears from the engines; it would raise
            learner.barrier()  # nobody asks an engine before all engines hold the version
        if self.config.verify:
            tokens = self.config.probe_tokens
            push.probe = [(w, partial(w.generate.remote, self.reasoned, 1, 0.0, tokens, version)) for w in self.workers]
            push.probe += [(w, partial(w.score.remote, self.direct, version)) for w in self.workers]
            push.probe_sent = [send() for _, send in push.probe]

    def finish(self, learner: Learner) -> dict[str, float]:
        """Wait until what `begin` sent is there and proved; nothing if no push is under way.

        Returns: `sync/*` (nats).   Raises: WeightSyncError on a breach, NonFiniteError if the learner's own log-probs
        are not finite."""
        push, self._under_way = self._under_way, None
        if push is None:
            return {}
        held, received = self._arrive(push)
        if not self.config.verify:
            return {}
        # every rank probes: under ZeRO-3 the learner's forward is a collective, and all must stop together
        difference, answers = self._probe(learner, push)
        difference = Difference(
            *(learner.reduce_max(v) for v in (difference.largest, difference.mean, difference.high))
        )
        version = push.version
        problem = held_problem(version, held, push.sent.digest, received) if learner.rank == 0 else ""
        if learner.reduce_max(float(bool(problem))):  # rank 0 alone would leave the others waiting
            raise WeightSyncError(problem or f"rank 0 found the push of version {version} broken; see its message")
        check_probe(difference, self.tolerance, version)
        self.recovery.proved(answers, self.config.probe_tokens, self.tolerance)
        return difference.metrics() | {"sync/version": float(version)}

    def _arrive(self, push: _UnderWay) -> tuple[list, list]:
        """(version, checksum) of every engine; empty on ranks that did not send."""
        if push.arrived is None:
            what = f"the push of weights {push.version}"
            push.arrived = self.recovery.settle_sent(
                push.weights, push.weights_sent, self.deadline_s, self.deadline_s, what
            )
        half = len(push.arrived) // 2
        return push.arrived[:half], push.arrived[half:]

    def _probe(self, learner: Learner, push: _UnderWay) -> tuple[Difference, Probe]:
        """Every engine's answers against the learner's log-probs of the same tokens; every rank computes the same.

        Returns: how far they are apart; the questions with the first engine's answers."""
        answers = self.recovery.settle_sent(
            push.probe, push.probe_sent, self.deadline_s, self.deadline_s, f"the probe of weights {push.version}"
        )
        reasoned, direct = answers[: len(self.workers)], answers[len(self.workers) :]
        judgements = [group[0] for groups in reasoned for group in groups] + [
            judgement for scores in direct for judgement in scores
        ]
        requests = [
            request for questions in (self.reasoned, self.direct) for _ in self.workers for request in questions
        ]
        # engines that answer alike are compared with one forward
        rows: dict[tuple, Row] = {}
        for q, a in zip(requests, judgements, strict=True):
            rows.setdefault(_answered(q, a), Row(q.token_ids, q.image, (a.token_ids,), (a.score_index,)))
        outputs = learner.forward(list(rows.values()))
        if not (outputs.logprobs.isfinite().all() and outputs.score_logprobs.isfinite().all()):
            raise NonFiniteError(f"the learner's log-probs of the probe questions are not finite; {REMEDY}")
        places = {answered: place for place, answered in enumerate(rows)}
        row_of = [places[_answered(q, a)] for q, a in zip(requests, judgements, strict=True)]
        probe = Probe(self.reasoned, self.direct, [group[0] for group in reasoned[0]], direct[0])
        return probe_difference(judgements, outputs.logprobs[row_of], outputs.score_logprobs[row_of]), probe


def _answered(request: JudgeRequest, judgement: Judgement) -> tuple:
    """What makes two answers one row of the learner's forward."""
    return request.token_ids.tobytes(), judgement.token_ids.tobytes(), judgement.score_index
