"""What ends a reward service whose run died without a word: a lease that Ray ends with the run, and a keeper that
outlives it and deletes the application when the lease has been gone for a while.

A run that is resumed before the keeper has noticed takes keeper, application and Serve over; one that comes while the
keeper is deleting waits until it has.
"""

from __future__ import annotations

import threading
import time

from zr_ray.errors import DeadlineError

LEASE_POLL_S = 5.0
"""The keeper looks this often whether the run still lives."""
LEASE_MISSES = 3
"""So many times in a row the lease must be gone."""
START_S = 120.0
"""Until an empty actor must run, on a machine that may be busy; and until a keeper must have deleted what it kept."""


class _Lease:
    """Lives as long as the run that made it: Ray ends it with its job."""


class _Keeper:
    """Deletes the application of a run whose lease is gone."""

    def __init__(self, shut_down: bool) -> None:
        """shut_down: end Serve too, if nothing else uses it."""
        self._shut_down, self._misses, self._deleting = shut_down, 0, False
        self._lock = threading.Lock()

    def take_over(self) -> bool | None:
        """Whether Serve ends with this application; None if it is being deleted just now."""
        with self._lock:
            self._misses = 0
            return None if self._deleting else self._shut_down

    def watch(self, name: str, namespace: str, poll_s: float) -> None:
        """Until the lease has been gone for a while; then the application is deleted, and this actor ends."""
        import ray

        while not self._deleting:
            time.sleep(poll_s)
            try:
                ray.get_actor(f"{name}/lease", namespace=namespace)
                gone = False
            except ValueError:
                gone = True
            with self._lock:
                self._misses = self._misses + 1 if gone else 0
                self._deleting = self._misses >= LEASE_MISSES
        delete_application(name, self._shut_down)
        ray.actor.exit_actor()


def take_lease(name: str):
    """The lease of the application `name`, running. Whoever holds it kills it at the end."""
    import ray

    lease = ray.remote(_Lease).options(name=f"{name}/lease", num_cpus=0).remote()
    ray.get(lease.__ray_ready__.remote(), timeout=START_S)
    return lease


def taken_over(name: str) -> bool:
    """Whether an earlier life of this run started the Serve that is there: its keeper is asked, and from then on keeps
    for us. False if there is no keeper. Waits for one that is deleting."""
    import ray

    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            keeper = ray.get_actor(f"{name}/keeper")
            found = ray.get(keeper.take_over.remote(), timeout=START_S)
        except (ValueError, ray.exceptions.RayActorError):
            return False  # none, or it has just ended
        if found is not None:
            return found
        time.sleep(0.5)
    raise DeadlineError(
        f"the keeper of {name} has been deleting it for {START_S:g} s; look at Serve in the dashboard, or end both with"
        " python -m zr_ray gc --yes"
    )


def keep(name: str, shut_down: bool, poll_s: float = LEASE_POLL_S):
    """The application's keeper: the one that was taken over, or a new one. It is detached: it must outlive the job it
    watches. shut_down: end Serve too, if nothing else uses it."""
    import ray

    try:
        return ray.get_actor(f"{name}/keeper")
    except ValueError:
        pass
    options = {"name": f"{name}/keeper", "num_cpus": 0, "lifetime": "detached", "max_concurrency": 2}
    keeper = ray.remote(_Keeper).options(**options).remote(shut_down)
    keeper.watch.remote(name, ray.get_runtime_context().namespace, poll_s)
    return keeper


def delete_application(name: str, shut_down: bool) -> None:
    """Delete it, and end Serve if told to and nothing else is in it."""
    from ray import serve

    from zr_ray.serving.instance import end_serve

    serve.delete(name)
    if shut_down and not serve.status().applications:
        end_serve()
