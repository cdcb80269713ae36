"""Rollouts of later steps while the learner trains: bounded staleness, and steps that do not wait for their longest
output.

    weights v are pushed       -> parts of the steps up to v + ahead may be handed out, the oldest first
    between two micro-batches  -> what is back is noted, engines with nothing to wait for get their next part
    step s begins              -> waits for all that step s - 1 left and for collect_frac of its own pairs; takes what
                                  is back, in the data's order, and leaves the rest to step s + 1

    ahead = max_staleness, and one less where a step may leave something: a pair of step s is sampled by weights
    s - ahead or newer, and trained on at s, or at s + 1

The unit is a part: some pairs of one step, both sides with their whole groups, in one call of one engine. The call
blocks until its longest output ends, so a part comes back as a whole, with weights of one version, and a push comes
between two calls (`push.py`). Ray queues the calls of an engine, keeps their order and says which are back.
Which pairs are asked, in which order and with which seeds, is a function of (run seed, step); which version samples a
pair depends on the clock where more than one may.
Left out on purpose: new weights in the middle of an output, and outputs thrown away for their age; none gets so old.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from zr_ray.config.gdso import GdsoConfig
from zr_ray.data.pairs import PairSchedule
from zr_ray.errors import RolloutError, StaleWeightsError
from zr_ray.judging.ask import pair_requests, require_groups
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import Judgement, JudgeRequest, PreferencePair
from zr_ray.run.observe import duration, say
from zr_ray.workers.recovery import Call, Recovery

IN_FLIGHT = 2
"""Calls that a rank has at one engine: one runs, and the next is there when it ends. More would keep a push waiting."""
SAY_S = 30.0
"""Between two lines about what is waited for."""


@dataclass(eq=False)
class Part:
    """Some pairs of one step, asked in one call."""

    step: int
    indices: tuple[int, ...]
    """Positions of the pairs in the step's global batch."""
    pairs: list[PreferencePair] = field(default_factory=list)
    requests: list[JudgeRequest] = field(default_factory=list)
    """Winner and loser of each pair, from when it is handed out."""
    call: Call | None = None
    reference: object = None
    """Ray's, to the answer; None until it is handed out."""
    lost: bool = False
    """Its engine was lost; the call is made again when the learner waits for rollouts."""
    groups: list[list[Judgement]] | None = None
    """The answer."""

    @property
    def in_flight(self) -> bool:
        """Handed out, not back."""
        return self.reference is not None and self.groups is None


@dataclass(frozen=True)
class Taken:
    """What one rank trains on in one step: the pairs that the step before left, then its own, in the data's order."""

    pairs: list[PreferencePair]
    requests: list[JudgeRequest]
    groups: list[list[Judgement]]
    """Two per pair, winner and loser."""
    left: int
    """Pairs of this step that the next one takes."""
    due: int
    """Pairs that this step could take."""
    back: int
    """Of these, pairs that were back when the learner asked."""


class RolloutsAhead:
    """One rank's rollouts, from its share of engines."""

    def __init__(
        self,
        workers: Sequence,
        recovery: Recovery,
        text: JudgeText,
        schedule: PairSchedule,
        config: GdsoConfig,
        mine: range,
        start: int,
        left: Sequence[int] = (),
    ) -> None:
        """workers: this rank's. mine: its positions in every global batch. start: steps done. left: positions in the
        last of these whose pairs were not trained on, of all ranks."""
        self.workers, self.recovery, self.text, self.schedule = list(workers), recovery, text, schedule
        self.config, self.c, self.mine = config, config.gdso, mine
        self.ahead = self.c.max_staleness - (1 if self.c.collect_frac < 1 else 0)
        self._version = start
        self._cut_until = start  # steps before this one have their parts
        self._parts = self._cut(start - 1, [i for i in left if i in mine])

    def allow(self, version: int) -> None:
        """Weights `version` are in the engines, or on their way behind what those were asked before: steps up to
        `version + ahead` may be sampled."""
        self._version, end = version, min(version + self.ahead + 1, self.c.steps)
        for step in range(self._cut_until, end):
            self._parts += self._cut(step, self.mine)
        self._cut_until = max(self._cut_until, end)
        self.feed()

    def feed(self) -> None:
        """Note what is back, hand out what engines have room for. Waits for nothing."""
        import ray

        flying = {part.reference: part for part in self._parts if part.in_flight and not part.lost}
        if flying:
            for reference in ray.wait(list(flying), num_returns=len(flying), timeout=0)[0]:
                self._receive(flying[reference])
        for part in self._parts:
            if part.reference is None:
                worker = self._roomiest()
                if worker is None:
                    return
                self._hand_out(part, worker)

    def fed(self, objective: Callable) -> Callable:
        """The objective of a micro-batch, with a look at the engines before it."""

        def looked(*arguments):
            self.feed()
            return objective(*arguments)

        return looked

    def take(self, step: int) -> Taken:
        """What step `step` (0-based) trains on; waits as long as it must.

        Raises: what an engine raised; RolloutError if the step was not allowed, or answers do not line up."""
        if step >= self._cut_until:
            raise RolloutError(f"step {step + 1} was not asked for: weights {self._version} allow {self._cut_until}")
        self.feed()
        due = [part for part in self._parts if part.step <= step]
        back = _pairs(part for part in due if part.groups is not None)
        # nothing waits longer than one step, and nothing is left at the end
        frac = 1.0 if step + 1 == self.c.steps else self.c.collect_frac
        wanted = math.ceil(frac * len(self.mine))

        def enough() -> bool:
            own = [part for part in due if part.step == step]
            return all(part.groups is not None for part in due if part.step < step) and wanted <= _pairs(
                part for part in own if part.groups is not None
            )

        self._wait(enough, f"rollouts of step {step + 1}")
        taken = [part for part in due if part.groups is not None]
        self._parts = [part for part in self._parts if part.step > step or part.groups is None]
        return Taken(
            [pair for part in taken for pair in part.pairs],
            [request for part in taken for request in part.requests],
            [group for part in taken for group in part.groups or ()],
            left=_pairs(due) - _pairs(taken),
            due=_pairs(due),
            back=back,
        )

    def left(self, step: int) -> list[int]:
        """Positions of this rank's pairs of step `step` (0-based) and before that were not taken; for a checkpoint."""
        return [index for part in self._parts if part.step <= step for index in part.indices]

    # ---- parts ----

    def _cut(self, step: int, indices: Sequence[int]) -> list[Part]:
        """Parts of about one size, of neighbors."""
        count = min(len(indices), len(self.workers) * self.c.collect_parts)
        ends = [n * len(indices) // count for n in range(count + 1)] if count else []
        return [Part(step, tuple(indices[a:b])) for a, b in zip(ends, ends[1:], strict=False)]

    def _roomiest(self):
        """The engine with the fewest calls of this rank, None if none has room. One that was lost has none."""
        held = [(part.call[0], IN_FLIGHT if part.lost else 1) for part in self._parts if part.in_flight]
        calls = [sum(count for holder, count in held if holder is worker) for worker in self.workers]
        return self.workers[calls.index(min(calls))] if min(calls) < IN_FLIGHT else None

    def _hand_out(self, part: Part, worker) -> None:
        batch = self.schedule.batch(part.step)
        part.pairs = [batch[i] for i in part.indices]
        part.requests = pair_requests(self.text, part.pairs, part.step, self.config.run.seed, part.indices)
        # an engine that was started again holds older weights, and refuses
        asked = (part.requests, self.c.group_size, 1.0, None, self._version, 0, True)
        send = partial(worker.generate.remote, *asked)
        part.call, part.reference = (worker, send), send()

    def _receive(self, part: Part) -> None:
        import ray
        from ray.exceptions import RayActorError

        try:
            self._keep(part, ray.get(part.reference))
        except (RayActorError, StaleWeightsError):
            part.lost = True  # bringing an engine back takes longer than the learner should stand still

    def _keep(self, part: Part, groups: list[list[Judgement]]) -> None:
        require_groups(part.requests, groups, self.c.group_size)
        part.groups, part.lost = groups, False

    # ---- waiting ----

    def _wait(self, enough: Callable[[], bool], what: str) -> None:
        """Until `enough()`; lost engines are brought back, one that hangs longer than rollout.deadline_s too."""
        import ray

        deadline_s = self.config.rollout.deadline_s
        since = said = time.monotonic()
        while True:
            self.feed()
            lost = [part for part in self._parts if part.lost]
            if lost:
                self._settle(lost, deadline_s, what)
                continue
            if enough():
                return
            flying = [part for part in self._parts if part.in_flight]
            waited = time.monotonic() - since
            if waited >= deadline_s:
                self._settle(flying, 0.1, what)
                since = time.monotonic()
                continue
            if time.monotonic() - said >= SAY_S:
                said = time.monotonic()
                say(
                    f"waiting for {what}: {len(flying)} call(s) pending after {duration(waited)} (deadline"
                    f" {duration(deadline_s)})"
                )
            left_s = max(0.01, min(SAY_S, deadline_s - waited))
            ray.wait([part.reference for part in flying], num_returns=1, timeout=left_s)

    def _settle(self, parts: Sequence[Part], first_s: float, what: str) -> None:
        """Answers of these parts, from engines that are brought back where they were lost."""
        calls, references = [part.call for part in parts], [part.reference for part in parts]
        answers = self.recovery.settle_sent(calls, references, first_s, self.config.rollout.deadline_s, what)
        for part, groups in zip(parts, answers, strict=True):
            self._keep(part, groups)


def _pairs(parts) -> int:
    """Pairs of some parts."""
    return sum(len(part.indices) for part in parts)
