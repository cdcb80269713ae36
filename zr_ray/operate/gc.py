"""What dead runs left on a cluster: Serve applications, detached actors, placement groups. Shows them; with --yes
ends them.

    RAY_ADDRESS=... python -m zr_ray gc [--yes]

Ray itself ends a dead job's ordinary actors and groups. What outlives it is detached: a service whose keeper died too,
a keeper without its service, a training's cleaner. Only things that carry zr_ray's names are looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

NAMESPACE = "zr_ray"


@dataclass(frozen=True)
class Leftover:
    """Something that belongs to no living run."""

    kind: str
    """`application`, `actor` or `placement group`."""
    name: str
    key: str
    """What ends it: the application's name, the actor's name, the group's id."""


def leftovers(applications: list[str], actors: list[dict], groups: list[dict], living_jobs: set[str]) -> list[Leftover]:
    """What belongs to no living run.

    Args: applications: names of Serve's applications. actors: living ones of zr_ray's namespace with name, job_id and
        is_detached. groups: with name, id and creator_job_id ("" if unknown). living_jobs: ids of jobs that run."""
    names = {actor["name"] for actor in actors}
    found = [
        Leftover("application", name, name)
        for name in applications
        if f"{name}/lease" not in names and (f"{name}/keeper" in names or name.startswith("reward-"))
    ]
    gone = {leftover.name for leftover in found}
    for actor in actors:
        owner = actor["name"].rpartition("/")[0]
        orphan = actor["name"].endswith("/keeper") and owner not in applications and f"{owner}/lease" not in names
        stray = actor["is_detached"] and "/" in actor["name"] and actor["job_id"] not in living_jobs and owner in gone
        if orphan or stray:
            found.append(Leftover("actor", actor["name"], actor["name"]))
    for group in groups:
        if "/" in group["name"] and group["creator_job_id"] and group["creator_job_id"] not in living_jobs:
            found.append(Leftover("placement group", group["name"], group["id"]))
    return found


def read_cluster() -> list[Leftover]:
    """The leftovers of the connected cluster. Needs its dashboard (the state API)."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.util.state import list_actors, list_jobs, list_placement_groups

    living = {job.job_id for job in list_jobs(limit=1000) if str(job.status) in ("RUNNING", "PENDING") and job.job_id}
    actors = [
        {"name": a.name, "job_id": a.job_id, "is_detached": bool(a.is_detached)}
        for a in list_actors(
            filters=[("state", "=", "ALIVE"), ("ray_namespace", "=", NAMESPACE)], detail=True, limit=1000
        )
        if a.name
    ]
    groups = [
        {"name": g.name or "", "id": g.placement_group_id, "creator_job_id": g.creator_job_id or ""}
        for g in list_placement_groups(detail=True, limit=1000)
        if g.state != "REMOVED"
    ]
    serving = _get_global_client(raise_if_no_controller_running=False) is not None
    return leftovers(list(serve.status().applications) if serving else [], actors, groups, living)


def end(leftover: Leftover) -> None:
    """End one leftover; one that has gone meanwhile is fine."""
    import ray
    from ray import serve

    if leftover.kind == "application":
        serve.delete(leftover.key)
    elif leftover.kind == "actor":
        try:
            ray.kill(ray.get_actor(leftover.key, namespace=NAMESPACE))
        except ValueError:
            pass
    else:
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(leftover.key))))


def main(argv: list[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m zr_ray gc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--yes", action="store_true", help="end them; without it they are only shown")
    args = parser.parse_args(argv)

    from zr_ray.run import driver

    driver.connect(namespace=NAMESPACE)
    found = read_cluster()
    for leftover in found:
        print(f"{'ending' if args.yes else 'left over'}: {leftover.kind} {leftover.name}")
        if args.yes:
            end(leftover)
    hint = "" if args.yes else "; python -m zr_ray gc --yes ends them"
    print(f"{len(found)} left over{hint}" if found else "nothing left over")
    return 0
