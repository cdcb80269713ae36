"""Why a job waits: what it lacks, who holds what, and what the autoscaler does about it. One line each.

Read from Ray's own tables at the moment of asking. Left out on purpose: advice on which job to stop.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import placement_group_table

Bundle = Mapping[str, float]


def bundle_text(one: Bundle) -> str:
    """`{CPU: 1, GPU: 0.5}`."""
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in one.items()) + "}"


def bundles_text(bundles: Sequence[Bundle]) -> str:
    """`2 x {CPU: 0.5}, 1 x {CPU: 1}`."""
    return ", ".join(f"{count} x {text}" for text, count in Counter(bundle_text(b) for b in bundles).items())


def missing_text(bundles: Sequence[Bundle]) -> str:
    """What is wanted in all beside what is free: `needs CPU 2 of 1.5 free`. All that is short, or that it lies
    scattered."""
    wanted: Counter[str] = Counter()
    for one in bundles:
        wanted.update(one)
    free = ray.available_resources()
    short = {name: amount for name, amount in wanted.items() if free.get(name, 0.0) < amount}
    if short:
        return "needs " + ", ".join(f"{name} {a:g} of {free.get(name, 0.0):g} free" for name, a in short.items())
    return f"{bundles_text(bundles)} is free in all, but not together on any node"


def held_text(asker: str) -> str:
    """Who holds or asks for resources beside `asker`: placement groups by name, then actors outside of groups."""
    own = asker.rsplit("/", 1)[0]
    parts = []
    for group in placement_group_table().values():
        if group["state"] == "REMOVED" or group["name"].rsplit("/", 1)[0] == own:
            continue
        verb = "holds" if group["state"] == "CREATED" else "waits for"
        parts.append(
            f"{group['name'] or 'a training (Ray Train)'} {verb} {bundles_text(list(group['bundles'].values()))}"
        )
    parts += [f"{name} holds {bundles_text(bundles)}" for name, bundles in _actors().items()]
    return ", ".join(parts) if parts else "no zr_ray job holds anything"


def _actors() -> dict[str, list[Bundle]]:
    """Living actors outside of placement groups that hold CPUs or GPUs, by name. Empty where the cluster has no
    dashboard."""
    from ray.util.state import list_actors

    try:
        actors = list_actors(
            filters=[("state", "=", "ALIVE")], detail=True, limit=1000, timeout=5, raise_on_missing_output=False
        )
    except Exception:  # the state API is a service of the dashboard: without it there is less to say, nothing to fail
        return {}
    found: dict[str, list[Bundle]] = {}
    for actor in actors:
        held = {k: v for k, v in (actor.required_resources or {}).items() if k in ("CPU", "GPU") and v > 0}
        if held and not actor.placement_group_id:
            found.setdefault(_short(actor.name or actor.class_name), []).append(held)
    return found


def _short(name: str) -> str:
    """`SERVE_REPLICA::reward#student#ab12` -> `Serve's reward student`."""
    if name.startswith("SERVE_REPLICA::"):
        app, _, rest = name.removeprefix("SERVE_REPLICA::").partition("#")
        return f"Serve's {app} {rest.partition('#')[0]}"
    return name


def autoscaler_line() -> str:
    """What the autoscaler says it is doing: nodes on their way, nodes that failed. Empty without an autoscaler."""
    try:
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        return _version_2() if is_autoscaler_v2() else _version_1()
    except Exception:  # an internal table whose form Ray may change; a wait must not end because of its own line
        return ""


def _version_1() -> str:
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    report = status.get("autoscaler_report") or {}
    coming = Counter(entry[1] for entry in report.get("pending_nodes") or [])
    for name, count in (report.get("pending_launches") or {}).items():
        coming[name] += count
    failed = Counter(entry[1] for entry in report.get("failed_nodes") or [])
    return _line(coming, failed) if status else ""


def _version_2() -> str:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    coming = Counter(node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        coming[launch.ray_node_type_name] += launch.count
    failed = Counter(launch.ray_node_type_name for launch in status.failed_launches)
    return _line(coming, failed)


def _line(coming: Mapping[str, int], failed: Mapping[str, int]) -> str:
    parts = [f"{count} x {name} on their way" for name, count in coming.items()]
    parts += [f"{count} x {name} could not be started" for name, count in failed.items()]
    return "autoscaler: " + (", ".join(parts) if parts else "nothing on its way")
