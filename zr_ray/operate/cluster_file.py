"""The node types of a cluster file, whatever its kind: what a node of each offers, how many there may be, which GPU
it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zr_ray.errors import ConfigError
from zr_ray.operate.instances import machine
from zr_ray.operate.kuberay import KINDS, cluster_of, group_gpu_gib, group_resources
from zr_ray.operate.ray_up import machine_type
from zr_ray.operate.validate import read_documents


@dataclass(frozen=True)
class NodeType:
    """One kind of node that the autoscaler may add."""

    name: str
    resources: dict[str, float]
    """What one node offers Ray."""
    most: int
    """How many there may be at a time; the head is one."""
    machine: str
    """The provider's name of the machine, empty if the file does not say."""
    gpu_gib: float
    """Memory of one GPU, GiB; 0 if unknown or without GPU."""


def node_types(path: Path) -> list[NodeType]:
    """All node types, the head first. Raises ConfigError for a file that describes no cluster."""
    for document in read_documents(path):
        if "provider" in document:
            return _of_ray_up(document)
        if document.get("kind") in KINDS:
            return _of_kuberay(document)
    raise ConfigError(f"{path} describes no cluster; give a `ray up` file or a manifest of kind {', '.join(KINDS)}")


def _of_ray_up(tree: dict) -> list[NodeType]:
    provider, head = tree["provider"]["type"], tree.get("head_node_type")
    found = []
    for name, node in tree["available_node_types"].items():
        kind = machine_type(provider, node.get("node_config") or {}) or ""
        has = machine(provider, kind)
        most = 1 if name == head else node.get("max_workers", tree.get("max_workers", 0))
        resources = {key: float(amount) for key, amount in (node.get("resources") or {}).items()}
        found.append(NodeType(name, resources, most, kind, has.gpu_gib if has else 0.0))
    return sorted(found, key=lambda node: node.name != head)


def _of_kuberay(document: dict) -> list[NodeType]:
    cluster, key = cluster_of(document)
    if cluster is None:
        raise ConfigError(f"{key} is missing: the manifest describes no cluster")
    head = NodeType("head", group_resources(cluster["headGroupSpec"]), 1, "", 0.0)
    groups = cluster.get("workerGroupSpecs") or []
    return [
        head,
        *(NodeType(g["groupName"], group_resources(g), g.get("maxReplicas", 0), "", group_gpu_gib(g)) for g in groups),
    ]
