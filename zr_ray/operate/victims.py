"""Processes of a run on this machine, by what they do: what `jobs/chaos.py` kills, and what must be gone at the end.

Reads Ray's own table of actors, which knows each one's process. Left out on purpose: processes of other machines.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import psutil

SETTLE_S = 90.0
"""Until what a run leaves must be gone: a lost driver's service is deleted after three missed leases of 5 s, and
Serve takes its time to end."""
RAYS_OWN = (
    "TrainStateActor", "StatsActor", "PlacementGroupCleaner", "JobSupervisor", "ServeController", "ProxyActor",
    "_AutoscalingCoordinatorActor",
)  # fmt: skip
"""Ray's own actors, of which a cluster has one each, whoever uses it; Serve's count as an application."""


def victims(kind: str, run_id: str, driver_pid: int) -> list[int]:
    """Process ids of a run's living workers of a kind.

    Args: kind: `rollout`, `learner` (a diffusion actor is one too), `replica` of the run's own reward service, or
        `driver`. driver_pid: of the run's driver now; learners are those of its job."""
    if kind == "driver":
        return [driver_pid]
    alive = [actor for actor in _actors().values() if actor["State"] == "ALIVE"]
    if kind == "rollout":
        return [a["Pid"] for a in alive if a["Name"].startswith(f"{run_id}/rollout-")]
    if kind == "replica":
        return [a["Pid"] for a in alive if a["Name"].startswith(f"SERVE_REPLICA::reward-{run_id}#")]
    job = _job_of(driver_pid)
    return [a["Pid"] for a in alive if a["JobID"] == job and a["ActorClassName"].endswith("TrainWorker")]


def _actors() -> dict[str, dict]:
    # the public state API needs a dashboard, and has no process ids without its details
    from ray._private.state import actors

    return actors()


def _job_of(driver_pid: int) -> str | None:
    from ray._private.state import jobs

    return next((job["JobID"] for job in jobs() if job["DriverPid"] == driver_pid and not job["IsDead"]), None)


@dataclass(frozen=True)
class Held:
    """What is there at a moment, beside what Ray keeps for itself."""

    actors: dict[str, str] = field(default_factory=dict)
    """Id -> class and name of living actors."""
    groups: dict[str, str] = field(default_factory=dict)
    """Id -> name of placement groups."""
    applications: tuple[str, ...] = ()
    """Of Serve."""
    processes: dict[int, str] = field(default_factory=dict)
    """Id -> title of processes of jobs and of workers that are not idle."""
    ports: dict[tuple[int, int], str] = field(default_factory=dict)
    """(process, port) -> its title: what those processes listen on."""

    def beside(self, before: Held) -> dict[str, list[str]]:
        """What has come since `before`, by kind; all kinds are there."""
        return {
            "actors": [text for key, text in self.actors.items() if key not in before.actors],
            "placement groups": [text or key for key, text in self.groups.items() if key not in before.groups],
            "Serve applications": [name for name in self.applications if name not in before.applications],
            "processes": [f"{pid} {text}" for pid, text in self.processes.items() if pid not in before.processes],
            "ports": [f"{port} of {text}" for (pid, port), text in self.ports.items() if pid not in before.processes],
        }


def held(sessions: tuple[int, ...] = ()) -> Held:
    """What the connected cluster's node on this machine holds now.   sessions: of jobs that were started here."""
    from ray.util.placement_group import placement_group_table

    actors = {
        key: f"{a['ActorClassName']} {a['Name']}".strip()
        for key, a in _actors().items()
        if a["State"] != "DEAD" and not any(own in a["ActorClassName"] for own in RAYS_OWN)
    }
    groups = {key: g["name"] for key, g in placement_group_table().items() if g["state"] != "REMOVED"}
    processes = _processes(sessions)
    return Held(actors, groups, _applications(), processes, _ports(processes))


def leaked(before: Held, sessions: tuple[int, ...], settle_s: float = SETTLE_S) -> dict[str, list[str]]:
    """What has come since `before` and is still there after `settle_s`; returns at once when nothing is."""
    end = time.monotonic() + settle_s
    while any((found := held(sessions).beside(before)).values()) and time.monotonic() < end:
        time.sleep(1.0)
    return found


def _applications() -> tuple[str, ...]:
    from ray import serve
    from ray.serve.context import _get_global_client, _set_global_client

    _set_global_client(None)  # another job may have ended Serve, or started it
    if _get_global_client(raise_if_no_controller_running=False) is None:
        return ()
    try:
        return "Serve itself", *serve.status().applications
    except Exception:  # it is ending just now
        return ("Serve itself",)


def _processes(sessions: tuple[int, ...]) -> dict[int, str]:
    from ray._private.worker import global_worker

    folder, found = global_worker.node.get_session_dir_path(), {}
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        line = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(folder in part for part in line):
            for child in process.children(recursive=True):
                title = _title(child)
                if title.startswith("ray::") and "IDLE" not in title and not any(own in title for own in RAYS_OWN):
                    found[child.pid] = title
        elif process.info["pid"] != os.getpid() and _session(process.info["pid"]) in sessions:
            found[process.info["pid"]] = " ".join(line)[:80]
    return found


def _ports(processes: dict[int, str]) -> dict[tuple[int, int], str]:
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in processes]
    return {(c.pid, c.laddr.port): processes[c.pid] for c in listening}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
