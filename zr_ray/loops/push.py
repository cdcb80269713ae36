"""One verified weight push, seen from a learner rank (see `weights.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from zr_ray.config.weights import SyncTolerance, WeightsSection
from zr_ray.data.encoded import encoded_image
from zr_ray.errors import NonFiniteError, WeightSyncError
from zr_ray.judging.ask import generate, generate_with_probe, question
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.packing import Row
from zr_ray.records import AnnotatedImage, Judgement, JudgeRequest, ProbeQuestions
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
    """Every engine's proof, where it was asked for in a call of its own."""
    probe_sent: list = field(default_factory=list)
    answers: list[list[Judgement]] | None = None
    """Of each engine that this rank asked, one a question; None until they are there."""


class WeightPush:
    """Sends a learner's weights to all rollout workers and proves that they arrived. Every rank calls it at the same
    point.

    A push has two halves. `begin` puts the weights behind whatever an engine works on; `finish` waits for the answers
    to the proof's questions and compares them with the learner, whose weights must not have changed since. In between
    the questions go behind the weights (`ask`), or along with the next rollouts (`sample`), which costs an engine less
    than a batch of their own. Calling the push does all of it at once. A broadcast holds `begin` up until the slowest
    engine is free.

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
        reasoned, direct = (
            tuple(question(text, item, d, 0, direct, image) for d in text.rubric.dimensions) for direct in (False, True)
        )
        self.questions = ProbeQuestions(reasoned, direct, config.probe_tokens)
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

    def ask(self) -> None:
        """Put the questions of the push that is under way behind its weights; waits for nothing."""
        push = self._under_way
        if push is not None and self.config.verify and push.answers is None and not push.probe:
            push.probe = [(w, partial(w.probe.remote, self.questions, push.version)) for w in self.workers]
            push.probe_sent = [send() for _, send in push.probe]

    def sample(
        self, workers: Sequence, requests: Sequence[JudgeRequest], group_size: int, what: str
    ) -> list[list[Judgement]]:
        """Rollouts of the weights that were pushed last, with the proof's questions in the same batches if a push is
        under way; `finish` compares the answers, before anything is trained on.

        Args: workers: this rank's; the ranks' shares together are all of the run's.   Returns, Raises: as
            `ask.generate`."""
        push = self._under_way
        if push is None or not self.config.verify:
            return generate(workers, requests, group_size, 1.0, self.deadline_s, what, self.recovery)
        groups, push.answers = generate_with_probe(
            workers, requests, group_size, self.questions, self.deadline_s, what, self.recovery
        )
        return groups

    def finish(self, learner: Learner) -> dict[str, float]:
        """Wait until what `begin` sent is there and proved; nothing if no push is under way.

        Returns: `sync/*` (nats).   Raises: WeightSyncError on a breach, NonFiniteError if the learner's own log-probs
        are not finite."""
        self.ask()
        push, self._under_way = self._under_way, None
        if push is None:
            return {}
        held, received = self._arrive(push)
        if not self.config.verify:
            return {}
        # every rank probes: under ZeRO-3 the learner's forward is a collective, and all must stop together
        answers = self._answers(push)
        difference = self._difference(learner, answers)
        difference = Difference(**{name: learner.reduce_max(value) for name, value in asdict(difference).items()})
        version = push.version
        problem = held_problem(version, held, push.sent.digest, received) if learner.rank == 0 else ""
        if learner.reduce_max(float(bool(problem))):  # rank 0 alone would leave the others waiting
            raise WeightSyncError(problem or f"rank 0 found the push of version {version} broken; see its message")
        check_probe(difference, self.tolerance, version)
        self.recovery.proved(Probe(self.questions, answers[0]), self.tolerance)
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

    def _answers(self, push: _UnderWay) -> list[list[Judgement]]:
        """Of each engine asked, one answer a question."""
        if push.answers is None:
            push.answers = self.recovery.settle_sent(
                push.probe, push.probe_sent, self.deadline_s, self.deadline_s, f"the probe of weights {push.version}"
            )
        return push.answers

    def _difference(self, learner: Learner, answers: Sequence[Sequence[Judgement]]) -> Difference:
        """How far engines' answers are from the learner's log-probs of the same tokens."""
        # engines that answer alike are compared with one forward
        rows: dict[tuple, Row] = {}
        asked = [(q, a) for answered in answers for q, a in zip(self.questions.all, answered, strict=True)]
        for q, a in asked:
            rows.setdefault(_answered(q, a), Row(q.token_ids, q.image, (a.token_ids,), (a.score_index,)))
        outputs = learner.forward(list(rows.values()))
        if not (outputs.logprobs.isfinite().all() and outputs.score_logprobs.isfinite().all()):
            raise NonFiniteError(f"the learner's log-probs of the probe questions are not finite; {REMEDY}")
        places = {answered: place for place, answered in enumerate(rows)}
        row_of = [places[_answered(q, a)] for q, a in asked]
        judgements = [a for _, a in asked]
        return probe_difference(judgements, outputs.logprobs[row_of], outputs.score_logprobs[row_of])


def _answered(request: JudgeRequest, judgement: Judgement) -> tuple:
    """What makes two answers one row of the learner's forward."""
    return request.token_ids.tobytes(), judgement.token_ids.tobytes(), judgement.score_index
