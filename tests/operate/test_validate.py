"""The cluster files are valid; ten broken ones are each refused with a line that names the key."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import yaml

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import ConfigError
from zr_ray.operate.validate import check_file, main, read_documents

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
FILES = sorted(path for folder in (CLUSTER, CLUSTER / "kuberay") for path in folder.glob("*.yaml"))


def change(tree, key: str, value) -> None:
    """Set the value at a dotted key, or delete it (value is ...)."""
    *path, last = [int(part) if part.isdigit() else part for part in key.split("/")]
    for part in path:
        tree = tree[part]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_shipped_is_valid(path):
    assert [str(f) for f in check_file(path) if f.fatal] == []


def test_all_kinds_are_there():
    assert {"aws.yaml", "gcp.yaml", "azure.yaml", "raycluster.yaml", "rayjob.yaml", "rayservice.yaml"} <= {
        path.name for path in FILES
    }


RUN_OPTIONS = [
    "--volume /mnt/zr_ray:/mnt/zr_ray", "--env ZR_RUNS=/mnt/zr_ray/runs",
    "--env RAY_AUTH_TOKEN_PATH=/home/ray/.zr_ray/ray_token"]  # fmt: skip
WORKER = "spec/workerGroupSpecs/0"
CONTAINER = f"{WORKER}/template/spec/containers/0"
BROKEN = [
    # file, what is changed, to what (... deletes), the key that the refusal names, a word of its reason
    (
        "aws.yaml",
        "available_node_types/rollout/node_config/InstanceTyp",
        "g6e.4xlarge",
        "available_node_types.rollout.node_config.InstanceTyp",
        "did you mean InstanceType",
    ),
    (
        "aws.yaml",
        "available_node_types/learner/resources/GPU",
        4,
        "available_node_types.learner.resources.GPU",
        "p4de.24xlarge has 8",
    ),
    (
        "aws.yaml",
        "available_node_types/head/resources/GPU",
        1,
        "available_node_types.head.resources.GPU",
        "must offer 0",
    ),
    (
        "aws.yaml",
        "docker/image",
        "registry.example.com/zr_ray:0.1.0-ray2.40.0",
        "docker.image",
        "versions of this installation",
    ),
    ("aws.yaml", "provider/use_internal_ips", False, "provider.use_internal_ips", "everywhere"),
    ("aws.yaml", "docker/run_options", RUN_OPTIONS, "docker.run_options", "RAY_AUTH_MODE=token"),
    (
        "aws.yaml",
        "available_node_types/rollout/min_worker",
        0,
        "available_node_types.rollout.min_worker",
        "Ray's schema",
    ),
    (
        "aws.yaml",
        "available_node_types/rollout/resources/CPU",
        15.5,
        "available_node_types.rollout.resources.CPU",
        "integer",
    ),
    ("aws.yaml", "head_node_type", "haed", "head_node_type", "must be one of"),
    (
        "aws.yaml",
        "provider/security_group",
        {"IpPermissions": [{"FromPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]},
        "provider.security_group.IpPermissions.0.IpRanges.0.CidrIp",
        "everyone",
    ),
    (
        "aws.yaml",
        "provider/type",
        "gcp",
        "available_node_types.rollout.node_config.InstanceType",
        "a node of gcp has no such key",
    ),
    ("aws.yaml", "setup_commands", ["pip install ray==2.40.0"], "setup_commands.0", "installs ray 2.40.0"),
    (
        "gcp.yaml",
        "available_node_types/reward/node_config/networkInterfaces/0/accessConfigs",
        [{"type": "ONE_TO_ONE_NAT"}],
        "available_node_types.reward.node_config.networkInterfaces.0.accessConfigs",
        "public address",
    ),
    (
        "azure.yaml",
        "available_node_types/reward/node_config/azure_arm_parameters/vmsize",
        "Standard_NC8as_T4_v3",
        "available_node_types.reward.node_config.azure_arm_parameters.vmsize",
        "vmSize",
    ),
    (
        "kuberay/raycluster.yaml",
        f"{CONTAINER}/resources/nvidia-gpu",
        "1",
        "spec.workerGroupSpecs.0.template.spec.containers.0.resources.nvidia-gpu",
        "no such key",
    ),
    ("kuberay/raycluster.yaml", f"{WORKER}/maxReplica", 3, "spec.workerGroupSpecs.0.maxReplica", "maxReplicas"),
    ("kuberay/raycluster.yaml", f"{WORKER}/maxReplicas", "8", "spec.workerGroupSpecs.0.maxReplicas", "a whole number"),
    (
        "kuberay/raycluster.yaml",
        f"{WORKER}/rayStartParams/num-gpus",
        "2",
        "spec.workerGroupSpecs.0.rayStartParams.num-gpus",
        "limit of nvidia.com/gpu",
    ),
    ("kuberay/raycluster.yaml", "spec/rayVersion", "2.40.0", "spec.rayVersion", "must be 2.60.0"),
    ("kuberay/raycluster.yaml", "spec/authOptions", ..., "spec.authOptions.mode", "must be token"),
    (
        "kuberay/raycluster.yaml",
        "spec/headGroupSpec/serviceType",
        "LoadBalancer",
        "spec.headGroupSpec.serviceType",
        "public",
    ),
    (
        "kuberay/raycluster.yaml",
        "spec/headGroupSpec/rayStartParams/num-gpus",
        "1",
        "spec.headGroupSpec.rayStartParams.num-gpus",
        "0 GPUs",
    ),
    ("kuberay/rayjob.yaml", "spec/runtimeEnvYAML", "{}", "spec.runtimeEnvYAML", "RAY_JOB_STOP_WAIT_TIME_S"),
    (
        "kuberay/rayservice.yaml",
        "spec/serveConfigV2",
        "applications: [{name: r, import_path: 'zr_ray.serve:app', args: {replica: {replica: 2}}}]",
        "spec.serveConfigV2.applications.0.args.replica.replica",
        "not permitted",
    ),
    (
        "serve_reward.yaml",
        "applications/0/routeprefix",
        "/x",
        "applications.0.routeprefix",
        "did you mean route_prefix",
    ),
    ("serve_reward.yaml", "http_options/host", "0.0.0.0", "applications.0.args.http.token_sha256", "no token"),
]


@pytest.mark.parametrize(
    ("name", "change_at", "value", "key", "reason"), BROKEN, ids=[f"{b[0]}-{b[1].split('/')[-1]}" for b in BROKEN]
)
def test_a_broken_file_is_refused_naming_the_key(tmp_path, name, change_at, value, key, reason):
    documents = copy.deepcopy(read_documents(CLUSTER / name))
    tree = next(d for d in documents if d.get("kind") != "ConfigMap")
    change(tree, change_at, value)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump_all(documents))
    lines = [str(f) for f in check_file(broken) if f.fatal]
    assert any(line.startswith(f"{key}: ") and reason in line for line in lines), lines


def test_exit_codes_and_lines(tmp_path, capsys):
    assert main([str(CLUSTER / "aws.yaml")]) == 0
    assert "note: " in capsys.readouterr().out, "what is to be filled in is said"
    broken = tmp_path / "x.yaml"
    broken.write_text((CLUSTER / "aws.yaml").read_text().replace("--num-gpus=0 ", ""))
    assert main([str(broken)]) == 1
    assert "head_start_ray_commands: `ray start` needs --num-gpus=0" in capsys.readouterr().out


def test_a_key_written_twice_is_refused(tmp_path):
    twice = tmp_path / "twice.yaml"
    twice.write_text((CLUSTER / "aws.yaml").read_text() + "max_workers: 3\n")
    with pytest.raises(ConfigError, match="'max_workers' is written twice"):
        check_file(twice)


def test_other_yaml_is_told_apart(tmp_path):
    other = tmp_path / "job.yaml"
    other.write_text("gdso: {steps: 3}\n")
    with pytest.raises(ConfigError, match="no cluster file.*its keys are gdso"):
        check_file(other)


def test_the_run_inside_the_job_manifest_is_a_valid_configuration():
    config_map = next(d for d in read_documents(CLUSTER / "kuberay" / "rayjob.yaml") if d["kind"] == "ConfigMap")
    config = GdsoConfig.model_validate(yaml.safe_load(config_map["data"]["gdso.yaml"]))
    assert (config.rollout.resource, config.learner.resource) == ("zr_rollout", "zr_learner")


DEFINITION = """
spec:
  group: ray.io
  names: {kind: RayCluster}
  versions:
  - name: v1
    schema:
      openAPIV3Schema:
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            properties:
              size: {x-kubernetes-int-or-string: true}
              note: {type: string, nullable: true}
              free: {type: object, properties: {a: {type: string}}, x-kubernetes-preserve-unknown-fields: true}
              labels: {type: object, additionalProperties: {type: string}}
"""


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"size": 3, "note": None, "free": {"b": 1}, "labels": {"any": "x"}}, None),
        ({"size": "50%"}, None),
        ({"size": [1]}, "spec.size"),
        ({"sise": 1}, "spec"),
        ({"note": 4}, "spec.note"),
        ({"labels": {"any": 4}}, "spec.labels.any"),
    ],
)
def test_a_complete_definition_is_read_strictly(tmp_path, spec, refused):
    (tmp_path / "ray.io_rayclusters.yaml").write_text(DEFINITION)
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": spec}))
    of_schema = [f.key for f in check_file(manifest, crds=tmp_path)]
    assert (refused in of_schema) if refused else not {"spec", *[f"spec.{k}" for k in spec]} & set(of_schema)


@pytest.mark.skipif(
    "ZR_KUBERAY_CRDS" not in os.environ,
    reason="ZR_KUBERAY_CRDS names no folder with KubeRay's ray.io_*.yaml definitions",
)
def test_manifests_against_kuberays_own_definitions():
    for path in sorted((CLUSTER / "kuberay").glob("ray*.yaml")):
        assert [str(f) for f in check_file(path, crds=Path(os.environ["ZR_KUBERAY_CRDS"])) if f.fatal] == []
