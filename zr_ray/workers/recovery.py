"""A lost rollout worker comes back, and answers nothing before it is proved to hold the current weights.

    a call fails, or hangs past its deadline (then the worker is killed)
      -> Ray starts the actor again in its bundle, with the folder's weights and no version
      -> it gets the weights of the last push, from who sent them or from another worker
      -> its answers to the probe questions are those of the engines that the push proved
      -> the call is made again: the same requests and seeds, so its groups are sampled as if nothing had been

What fences is the version in every call, not Ray's idea of who lives: a worker with other weights refuses. Answers
come back call by call, so a group is either in one answer or in none.
Left out on purpose: moving a lost worker's share to the others; they would need its time, and it is back in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zr_ray.config.weights import SyncTolerance
from zr_ray.config.workers import RolloutSection
from zr_ray.errors import DeadlineError, RolloutError, StaleWeightsError, WeightSyncError
from zr_ray.records import Judgement, ProbeQuestions
from zr_ray.run.observe import say, wait_for
from zr_ray.workers.weights import answers_difference, check_probe

ATTEMPTS = 3
"""Times that one call is made before its error stands; a worker that dies on the same prompts does so every time."""
PEER_S = 1.0
"""Between two looks whether another worker has the weights yet."""
Call = tuple[object, Callable[[], object]]
"""(worker, what sends the call and returns Ray's reference to its answer)."""


@dataclass(frozen=True)
class Probe:
    """What a push asked an engine, and what it answered."""

    questions: ProbeQuestions
    answers: Sequence[Judgement]
    """One a question, in their order."""


class Recovery:
    """What one rank (or a driver) knows of the run's rollout workers: the weights they must hold, and the proof."""

    def __init__(self, workers: Sequence, config: RolloutSection, tell: Callable[[str], None] = say) -> None:
        """workers: ALL rollout workers of the run. tell: gets a line when a worker was lost and when it is back."""
        self.workers, self.config, self.tell = list(workers), config, tell
        self.version: int | None = None
        """What every answer must come from; None before the first push: the folder's own weights."""
        self._recovered = 0
        self._handles: list = []
        self._kept = True
        self._proof: Callable[[object], None] | None = None

    def take(self) -> int:
        """Workers that this rank has brought back since the last call."""
        recovered, self._recovered = self._recovered, 0
        return recovered

    # ---- what a push says ----

    def begin(self, version: int, handles: Sequence, kept: bool = True) -> None:
        """From now on `version` is current. handles: of its buckets; empty on ranks that did not send it. kept: whether
        there are buckets at all, after a transfer that passed the object store by."""
        self.version, self._handles, self._kept, self._proof = version, list(handles), kept, None

    def proved(self, probe: Probe, tolerance: SyncTolerance) -> None:
        """The learner has agreed with this probe's answers; a replacement must give them too, within
        `tolerance`."""
        version, deadline_s = int(self.version or 0), self.config.deadline_s

        def prove(worker) -> None:
            asked = worker.probe.remote(probe.questions, version)
            answers = wait_for(asked, deadline_s, "the probe of a replaced rollout worker")
            check_probe(answers_difference(probe.answers, answers), tolerance, version)

        self._proof = prove

    # ---- calls that survive a lost worker ----

    def settle(self, calls: Sequence[Call], deadline_s: float, what: str) -> list:
        """Answers of all calls, in order; a call whose worker was lost or hangs is made again on its replacement.

        Args: deadline_s: for all calls together, and again for each that is repeated.
        Raises: what the last attempt raised; RolloutError if Ray does not start the worker again."""
        return self.settle_sent(calls, [send() for _, send in calls], deadline_s, deadline_s, what)

    def settle_sent(
        self, calls: Sequence[Call], references: Sequence, first_s: float, deadline_s: float, what: str
    ) -> list:
        """Answers of calls that were sent earlier, as `settle` gives them.

        Args: references: one a call. first_s: what is left of the first deadline; deadline_s: of each repeated call."""
        from ray.exceptions import RayActorError

        try:
            return wait_for(list(references), first_s, what)
        except (RayActorError, StaleWeightsError, DeadlineError) as error:
            if isinstance(error, DeadlineError):
                first_s = 0.1
        # the others compute meanwhile
        return [
            self._answer(call, reference, first_s, deadline_s, what)
            for call, reference in zip(calls, references, strict=True)
        ]

    def _answer(self, call: Call, reference, first_s: float, deadline_s: float, what: str):
        from ray.exceptions import RayActorError

        worker, send = call
        for attempt in range(ATTEMPTS):
            try:
                return wait_for(reference, deadline_s if attempt else first_s, what)
            except (RayActorError, StaleWeightsError, DeadlineError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise
                self._bring_back(worker, what, hung=isinstance(error, DeadlineError))
                reference = send()

    # ---- one worker ----

    def _bring_back(self, worker, what: str, hung: bool) -> None:
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        since, name = time.monotonic(), f"rollout worker {next(i for i, w in enumerate(self.workers) if w is worker)}"
        if hung:
            self.tell(f"{name} hangs ({what}): it is killed")
            ray.kill(worker, no_restart=False)
        for attempt in range(ATTEMPTS):
            try:
                if self._revive(worker):
                    self._recovered += 1
                    self.tell(f"{name} was lost ({what}) and is back after {time.monotonic() - since:.0f} s")
                return
            except ActorDiedError as error:
                raise RolloutError(
                    f"{name} died more than rollout.restarts = {self.config.restarts} times, the last time during"
                    f" {what}; look at its log in the Ray dashboard, then continue with --resume"
                ) from error
            except ActorUnavailableError:  # lost once more, on its way back
                if attempt + 1 == ATTEMPTS:
                    raise

    def _revive(self, worker) -> bool:
        """Whether anything had to be done beside waiting. Two calls may have failed with one worker."""
        # Ray holds this call until the actor is up again; without retries it would fail at once
        describe = worker.describe.options(max_task_retries=-1).remote()
        held = wait_for(describe, self.config.start_deadline_s, "a lost rollout worker to start again")
        if self.version is None:
            return True
        if held["policy_version"] == self.version:
            return False
        if not self._kept:
            raise WeightSyncError(
                f"a rollout worker was lost and there is no copy of weights {self.version} to give to its replacement"
                " (weights.keep_copy is false); continue with --resume"
            )
        handles = self._handles or self._from_others()
        wait_for(
            worker.update_weights.remote(self.version, handles),
            self.config.deadline_s,
            f"weights {self.version} of a replaced rollout worker",
        )
        if self._proof is not None:  # without it the push is under way, and proves all workers next
            self._proof(worker)
        return True

    def _from_others(self) -> list:
        """Handles of the current weights, from a worker that holds them."""
        from ray.exceptions import RayActorError

        end = time.monotonic() + self.config.start_deadline_s
        while time.monotonic() < end:
            for other in self.workers:
                try:
                    held = other.held_weights.remote()
                    version, handles = wait_for(held, self.config.deadline_s, "another engine's weights")
                except (RayActorError, DeadlineError):
                    continue
                if version == self.version and handles:
                    return handles
            time.sleep(PEER_S)
        raise WeightSyncError(
            f"no rollout worker holds weights {self.version} any more to give to a replacement; continue with --resume"
        )
