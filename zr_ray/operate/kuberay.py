"""KubeRay manifests: every key known, every value of its type, and what no schema sees (versions, head without GPU,
token, ports).

Left out on purpose: CEL rules of the CRDs, and whatever needs the Kubernetes API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from zr_ray.operate.findings import Finding, leaves, placeholders, unknown_keys
from zr_ray.operate.instances import GPU_GIB, NODE_SELECTORS
from zr_ray.operate.kubernetes_keys import FREE, OBJECTS
from zr_ray.operate.ray_up import OPEN_CIDRS, ROLE_PREFIX
from zr_ray.operate.versions import image_findings, pinned_findings, ray_version

KINDS = tuple(OBJECTS)
CLUSTER_KEY = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}
"""Where a manifest of a kind holds its cluster."""
GPU_RESOURCE = "nvidia.com/gpu"


def check_kuberay(document: dict, crds: Path | None = None) -> Iterator[Finding]:
    """Everything that is wrong with one RayCluster, RayJob or RayService. crds: folder with KubeRay's complete
    definitions."""
    kind = document["kind"]
    wrong = list(_against(OBJECTS[kind], document, "") if crds is None else _against_crd(crds, document))
    yield from wrong
    cluster, prefix = cluster_of(document)
    if cluster is None:
        yield Finding(CLUSTER_KEY[kind], "is missing")
        return
    if wrong:
        return
    yield from _cluster(cluster, prefix)
    if kind == "RayJob":
        yield from _job(document["spec"])
    if kind == "RayService":
        from zr_ray.operate.serve_file import check_serve

        for finding in check_serve(yaml.safe_load(document["spec"].get("serveConfigV2") or "{}")):
            yield Finding(f"spec.serveConfigV2.{finding.key}", finding.text, finding.fatal)
    yield from pinned_findings(document)
    yield from placeholders(document)


def cluster_of(document: dict) -> tuple[dict | None, str]:
    """(the RayCluster's spec inside a manifest or None, its dotted key)."""
    value: object = document
    key = CLUSTER_KEY[document["kind"]]
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return (value if isinstance(value, dict) else None), key


def group_resources(group: dict) -> dict[str, float]:
    """What one pod of a group offers Ray: CPU, GPU and custom resources, from rayStartParams, else from the
    container's limits."""
    params = group.get("rayStartParams") or {}
    container = group["template"]["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}
    cpus = float(params["num-cpus"]) if "num-cpus" in params else _cpus(limits.get("cpu", 0))
    gpus = float(params["num-gpus"]) if "num-gpus" in params else float(limits.get(GPU_RESOURCE, 0))
    custom = json.loads(params["resources"].strip("\"'").replace("\\", "")) if params.get("resources") else {}
    return {"CPU": cpus, "GPU": gpus} | {name: float(amount) for name, amount in custom.items()}


def group_gpu_gib(group: dict) -> float:
    """Memory of one GPU of the group's nodes by its nodeSelector, GiB; 0 if it does not say."""
    selector = group["template"]["spec"].get("nodeSelector") or {}
    return float(next((GPU_GIB[NODE_SELECTORS[value]] for value in selector.values() if value in NODE_SELECTORS), 0))


def _cpus(amount: object) -> float:
    text = str(amount)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _against(wanted, value, key: str) -> Iterator[Finding]:
    """Compare a value with the tree of kubernetes_keys."""
    if wanted is FREE:
        if not isinstance(value, dict):
            yield Finding(key, f"must be a mapping, got {value!r}")
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield Finding(key, f"must be a mapping, got {value!r}")
            return
        yield from unknown_keys(value, wanted, key, key.rsplit(".", 1)[-1] or "the manifest")
        for name in value.keys() & wanted.keys():
            yield from _against(wanted[name], value[name], f"{key}.{name}" if key else name)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            yield Finding(key, f"must be a list, got {value!r}")
            return
        for i, one in enumerate(value):
            yield from _against(wanted[0], one, f"{key}.{i}")
    elif isinstance(wanted, tuple):
        if value not in wanted:
            yield Finding(key, f"must be {' or '.join(map(str, wanted))}, got {value!r}")
    elif not isinstance(value, wanted if wanted is not float else (int, float)) or (
        isinstance(value, bool) and wanted in (int, float)
    ):
        yield Finding(key, f"must be {_NAMES.get(wanted, wanted.__name__)}, got {value!r}")


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


def _against_crd(folder: Path, document: dict) -> Iterator[Finding]:
    """Compare with the complete definition, strictly: the API server drops unknown keys without a word, here they are
    findings."""
    import jsonschema

    path = Path(folder) / f"ray.io_{document['kind'].lower()}s.yaml"
    if not path.is_file():
        yield Finding(
            "kind",
            f"no definition {path}; --crds names a folder with KubeRay's ray.io_rayclusters.yaml and its siblings",
        )
        return
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = document.get("apiVersion", "").rpartition("/")[2]
    schema = next((v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version), None)
    if schema is None:
        yield Finding(
            "apiVersion",
            f"must be one of {[v['name'] for v in crd['spec']['versions']]} of {crd['spec']['group']}, got {version!r}",
        )
        return
    schema = _strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield Finding(".".join(map(str, error.absolute_path)) or "top level", error.message.splitlines()[0][:200])


def _strict(schema: dict) -> dict:
    """An OpenAPI v3 schema as JSON schema: unknown keys refused, int-or-string and nullable spelled out."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    strict = {k: v for k, v in schema.items() if not k.startswith("x-kubernetes") and k != "nullable"}
    if "properties" in schema:
        strict["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    if schema.get("nullable") and "type" in schema:
        strict["type"] = [schema["type"], "null"]
    return strict


def _cluster(cluster: dict, prefix: str) -> Iterator[Finding]:
    if cluster.get("rayVersion") != ray_version():
        yield Finding(
            f"{prefix}.rayVersion",
            f"must be {ray_version()}, the version of this installation, got {cluster.get('rayVersion')}",
        )
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield Finding(f"{prefix}.authOptions.mode", "must be token: whoever reaches the dashboard otherwise runs code")
    if not cluster.get("networkPolicy"):
        yield Finding(f"{prefix}.networkPolicy", "is missing: every pod of the Kubernetes cluster reaches Ray's ports")
    if not cluster.get("gcsFaultToleranceOptions"):
        yield Finding(
            f"{prefix}.gcsFaultToleranceOptions", "is missing: a head that restarts forgets the cluster", fatal=False
        )
    if not cluster.get("enableInTreeAutoscaling"):
        yield Finding(f"{prefix}.enableInTreeAutoscaling", "must be true: worker groups start from zero")
    elif (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
        yield Finding(f"{prefix}.autoscalerOptions.version", "must be v2; v1 is no longer developed", fatal=False)
    for path, value in leaves(cluster):
        if isinstance(value, str) and value.strip() in OPEN_CIDRS:
            yield Finding(
                f"{prefix}.{path}", f"{value} opens the port to everyone; name a namespace or a network of your own"
            )
    head, groups = cluster.get("headGroupSpec"), cluster.get("workerGroupSpecs") or []
    if not head:
        yield Finding(f"{prefix}.headGroupSpec", "is missing")
        return
    yield from _head(head, f"{prefix}.headGroupSpec")
    for i, group in enumerate(groups):
        yield from _group(group, f"{prefix}.workerGroupSpecs.{i}")


def _head(head: dict, prefix: str) -> Iterator[Finding]:
    yield from _pods(head, prefix)
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield Finding(
            f"{prefix}.serviceType", f"must be ClusterIP, got {head['serviceType']}: the dashboard would be public"
        )
    if head.get("enableIngress"):
        yield Finding(f"{prefix}.enableIngress", "publishes the dashboard; use kubectl port-forward")
    offered = group_resources(head)
    if offered["GPU"] or GPU_RESOURCE in str(head["template"]):
        yield Finding(
            f"{prefix}.rayStartParams.num-gpus",
            f"the head must offer 0 GPUs, got {offered['GPU']:g}: a worker placed there dies with it",
        )
    if (head.get("rayStartParams") or {}).get("num-cpus") != "0":
        yield Finding(
            f"{prefix}.rayStartParams.num-cpus", 'must be "0": workers placed on the head compete with the drivers'
        )


def _group(group: dict, prefix: str) -> Iterator[Finding]:
    yield from _pods(group, prefix)
    for name in ("groupName", "minReplicas", "maxReplicas"):
        if name not in group:
            yield Finding(f"{prefix}.{name}", "is missing")
    if group.get("minReplicas", 0) > 0:
        yield Finding(
            f"{prefix}.minReplicas", f"keeps {group['minReplicas']} pod(s) paid for around the clock", fatal=False
        )
    try:
        offered = group_resources(group)
    except ValueError as error:
        yield Finding(
            f"{prefix}.rayStartParams.resources",
            f'must be JSON inside quotes, like \'"{{\\"zr_rollout\\": 1}}"\': {error}',
        )
        return
    container = group["template"]["spec"]["containers"][0]
    limit = float(((container.get("resources") or {}).get("limits") or {}).get(GPU_RESOURCE, 0))
    if offered["GPU"] != limit:
        yield Finding(
            f"{prefix}.rayStartParams.num-gpus",
            f"must equal the container's limit of {GPU_RESOURCE} ({limit:g}), got {offered['GPU']:g}",
        )
    if not any(name.startswith(ROLE_PREFIX) for name in offered):
        yield Finding(
            f"{prefix}.rayStartParams.resources",
            "offers no role, for example zr_rollout; workers that ask for a role never land here",
            fatal=False,
        )


def _pods(group: dict, prefix: str) -> Iterator[Finding]:
    spec = (group.get("template") or {}).get("spec") or {}
    if not spec.get("containers"):
        yield Finding(f"{prefix}.template.spec.containers", "is missing")
    for i, container in enumerate(spec.get("containers") or []):
        key = f"{prefix}.template.spec.containers.{i}"
        yield from image_findings(f"{key}.image", container.get("image"))
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield Finding(f"{key}.ports", "hostPort opens the port on the node's address")
        names = {entry.get("name"): entry.get("value") for entry in container.get("env") or []}
        if names.get("RAY_AUTH_TOKEN"):
            yield Finding(f"{key}.env", "RAY_AUTH_TOKEN holds the token itself; authOptions brings it from a secret")
    if spec.get("hostNetwork"):
        yield Finding(
            f"{prefix}.template.spec.hostNetwork",
            "opens every port of Ray on the node's address, past the network policy",
        )


def _job(spec: dict) -> Iterator[Finding]:
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield Finding("spec.entrypoint", "is missing")
    environment = yaml.safe_load(spec.get("runtimeEnvYAML") or "{}") or {}
    if "RAY_JOB_STOP_WAIT_TIME_S" not in (environment.get("env_vars") or {}):
        yield Finding(
            "spec.runtimeEnvYAML",
            "needs env_vars.RAY_JOB_STOP_WAIT_TIME_S: Ray kills a stopped job after 3 s, before its checkpoint",
        )
    if not spec.get("shutdownAfterJobFinishes"):
        yield Finding("spec.shutdownAfterJobFinishes", "must be true, or the cluster stays and is paid for")
