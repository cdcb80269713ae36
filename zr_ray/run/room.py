"""Room for a whole job at once, taken before anything starts: two starting jobs do not take half of it each and wait
for ever.

    lock ("zr_ray/placement", one holder in a cluster)
      -> one placement group of all bundles of all roles: it is granted as a whole, or not at all; while it waits it
      holds nothing
      -> one group per role instead of it; engines start in theirs, Ray Train and Serve place themselves and get
      theirs handed over
      -> unlock, once everything runs

The lock is an actor that belongs to the job: Ray ends it with the job, however the job ends. Its holder waits for
resources, never for another holder, so nobody waits in a circle. Every wait has a deadline and says, at once and then
every 30 s, what is missing and who has it.
Left out on purpose: priorities and preemption between jobs; who asks first gets the room first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from zr_ray.errors import PlacementError
from zr_ray.run.observe import duration, say
from zr_ray.run.shortage import autoscaler_line, bundles_text, held_text, missing_text

NAMESPACE, LOCK = "zr_ray", "placement"
"""Where the lock lives, whatever namespace the job has."""
SAY_EVERY_S = 30.0
FIRST_SAY_S = 3.0
"""A wait shorter than this is not worth a line."""
HANDOVER_S = 60.0
"""Until a group that replaces the probe must be granted: its resources were free a moment ago."""


class _Lock:
    """Exists as long as one job holds the right to place itself."""

    def __init__(self, holder: str, wants: str) -> None:
        self._about = {"holder": holder, "wants": wants, "since": time.time()}

    def describe(self) -> dict:
        """Who holds it, for what, since when (time.time())."""
        return self._about


class Room:
    """What `reserve` gives: a group per role, and the lock until `settled`."""

    def __init__(self, owner: str, lock, groups: dict[str, PlacementGroup]) -> None:
        self.owner, self._lock, self._groups = owner, lock, groups

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles whose resources nobody has taken yet."""
        return tuple(self._groups)

    def take(self, role: str) -> PlacementGroup:
        """The role's group; whoever takes it removes it."""
        return self._groups.pop(role)

    def hand_over(self, role: str) -> None:
        """Free the role's resources for somebody who places himself, now and under the lock: Ray Train, Ray Serve."""
        if role in self._groups:
            remove_placement_group(self._groups.pop(role))

    def settled(self) -> None:
        """Everything runs: let the next job look for room. May be called again."""
        if self._lock is not None:
            ray.kill(self._lock)
            self._lock = None

    def close(self) -> None:
        """Give back what nobody took, and the lock."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups = {}
        self.settled()


@contextmanager
def reserve(owner: str, wanted: Mapping[str, Sequence[dict[str, float]]], deadline_s: float) -> Iterator[Room]:
    """Room for all bundles of all roles, together.

    Args: owner: run id, in every message and group name. wanted: role -> bundles. deadline_s: for the lock and the
        resources together.   Raises: PlacementError after the deadline, saying what is missing and who has it."""
    end = time.monotonic() + deadline_s
    lock = _take_lock(owner, wanted, end, deadline_s)
    room = Room(owner, lock, {})
    try:
        everything = [dict(one) for bundles in wanted.values() for one in bundles]
        remove_placement_group(wait_for_group(everything, f"{owner}/all", end - time.monotonic(), deadline_s))
        for role, bundles in wanted.items():
            group = wait_for_group([dict(one) for one in bundles], f"{owner}/{role}", HANDOVER_S)
            room._groups[role] = group
        yield room
    finally:
        room.close()


def release_lock(owner: str) -> None:
    """From any process of the job: what `Room.settled` does. Nothing happens if somebody else holds the lock by now."""
    try:
        lock = ray.get_actor(LOCK, namespace=NAMESPACE)
        if ray.get(lock.describe.remote(), timeout=10)["holder"] == owner:
            ray.kill(lock)
    except (ValueError, ray.exceptions.RayError):
        pass


def _take_lock(owner: str, wanted, end: float, deadline_s: float):
    actor, said = ray.remote(_Lock), time.monotonic() - SAY_EVERY_S + FIRST_SAY_S
    wants = bundles_text([one for bundles in wanted.values() for one in bundles])
    while True:
        try:
            lock = actor.options(name=LOCK, namespace=NAMESPACE, num_cpus=0).remote(owner, wants)
            ray.get(lock.describe.remote(), timeout=max(1.0, end - time.monotonic()))
            return lock
        except ValueError:
            holder = _holder()
        except ray.exceptions.GetTimeoutError:
            raise PlacementError(
                f"{owner} did not get its turn to place itself within {duration(deadline_s)}: the lock did not"
                " start in that time; this machine is overloaded: wait, or raise run.wait_for_room_s"
            ) from None
        except ray.exceptions.RayError as error:
            raise PlacementError(f"the placement lock did not start: {error}; is the cluster healthy?") from None
        if time.monotonic() > end:
            raise PlacementError(
                f"{owner} did not get its turn to place itself within {duration(deadline_s)}: {holder}; wait for "
                f"it, stop"
                " it, or raise run.wait_for_room_s"
            )
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"waiting for {holder}")
        time.sleep(0.5)


def _holder() -> str:
    try:
        lock = ray.get_actor(LOCK, namespace=NAMESPACE)
        about = ray.get(lock.describe.remote(), timeout=5)
    except (ValueError, ray.exceptions.RayError):
        return "a job that is placing itself"
    return f"{about['holder']}, which has been placing {about['wants']} for {duration(time.time() - about['since'])}"


def wait_for_group(
    bundles: list[dict[str, float]], name: str, wait_s: float, deadline_s: float | None = None
) -> PlacementGroup:
    """A granted placement group of `bundles`.

    Args: wait_s: from now. deadline_s: how the limit is called in messages, if the wait began earlier.
    Raises: PlacementError after wait_s, saying what is missing and who has it."""
    group = placement_group(bundles, strategy="PACK", name=name)
    start, said, limit = time.monotonic(), -SAY_EVERY_S, duration(deadline_s or wait_s)
    try:
        while not group.wait(FIRST_SAY_S if said < 0 else 1.0):
            waited = time.monotonic() - start
            if waited > wait_s:
                raise PlacementError(
                    f"{name} wants {bundles_text(bundles)} and did not get it within {limit}: {missing_text(bundles)};"
                    f" {held_text(name)}; stop another job, add nodes, or raise run.wait_for_room_s"
                )
            if waited - said >= SAY_EVERY_S:
                said = waited
                growing = autoscaler_line()
                say(
                    f"waiting for {name}: {missing_text(bundles)}; {held_text(name)}; "
                    f"{growing + '; ' if growing else ''}"
                    f"{duration(waited)} of {limit}"
                )
        return group
    except BaseException:
        remove_placement_group(group)
        raise


def groups_of(owner: str) -> list[dict]:
    """Living placement groups of a run, as Ray's table has them."""
    return [
        g for g in placement_group_table().values() if g["name"].startswith(f"{owner}/") and g["state"] != "REMOVED"
    ]
