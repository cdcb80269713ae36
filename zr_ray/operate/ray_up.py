"""A `ray up` file: Ray's own schema, and what that schema does not see (tried: it passes any node_config, and AWS
nodes under gcp).

Left out on purpose: asking the cloud. Quotas, prices and whether an image exists are not known offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from zr_ray.operate.findings import Finding, leaves, placeholders, unknown_keys
from zr_ray.operate.instances import machine
from zr_ray.operate.versions import image_findings, pinned_findings

ROLE_PREFIX = "zr_"
"""Custom resources of node types: zr_rollout, zr_learner, zr_reward, zr_diffusion."""
OPEN_CIDRS = ("0.0.0.0/0", "::/0")

_NODE_CONFIG = {
    "aws": (
        "BlockDeviceMappings CapacityReservationSpecification CpuOptions CreditSpecification DisableApiTermination "
        "EbsOptimized "
        "EnclaveOptions HibernationOptions IamInstanceProfile ImageId InstanceInitiatedShutdownBehavior "
        "InstanceMarketOptions "
        "InstanceType Ipv6AddressCount KernelId KeyName LaunchTemplate LicenseSpecifications MaintenanceOptions "
        "MetadataOptions "
        "Monitoring NetworkInterfaces Placement PrivateDnsNameOptions PrivateIpAddress RamdiskId SecurityGroupIds "
        "SubnetId SubnetIds "
        "TagSpecifications UserData"
    ).split(),  # keyword arguments of boto3's create_instances, and Ray's SubnetIds
    "gcp": (
        "acceleratorConfig acceleratorType advancedMachineFeatures canIpForward confidentialInstanceConfig "
        "deletionProtection "
        "description disks displayDevice guestAccelerators hostname labels machineType metadata minCpuPlatform "
        "networkConfig "
        "networkInterfaces networkPerformanceConfig params privateIpv6GoogleAccess reservationAffinity "
        "resourcePolicies "
        "runtimeVersion scheduling schedulingConfig serviceAccounts shieldedInstanceConfig sourceInstanceTemplate "
        "sourceMachineImage startRestricted tags"
    ).split(),  # fields of Compute Engine's instance resource and of a TPU node
    "azure": ["azure_arm_parameters"],
}
_ARM = (
    "availability_zone billingProfile enableAcceleratedNetworking evictionPolicy imageId imageOffer imagePublisher "
    "imageSku imageVersion "
    "osDiskSize priority vmSize zones"
).split()  # parameters of Ray's azure-vm-template.json that a user sets; Ray fills in the others
_PROVIDER_NEEDS = {
    "aws": ["region"],
    "gcp": ["region", "availability_zone", "project_id"],
    "azure": ["location", "resource_group"],
}
_TYPE_KEY = {"aws": ("InstanceType",), "gcp": ("machineType",), "azure": ("azure_arm_parameters", "vmSize")}


def check_ray_up(tree: dict) -> Iterator[Finding]:
    """Everything that is wrong with the tree of a `ray up` file; notes for what could not be compared."""
    provider = (tree.get("provider") or {}).get("type")
    if provider not in _NODE_CONFIG:
        yield Finding("provider.type", f"must be one of {', '.join(_NODE_CONFIG)}, got {provider!r}")
        return
    schema = list(_schema(tree))
    yield from schema
    if schema:  # the second layer reads what the first has found well-formed
        return
    for name in _PROVIDER_NEEDS[provider]:
        if name not in tree["provider"]:
            yield Finding(f"provider.{name}", f"{provider} needs it, and it is missing")
    for name, node in tree["available_node_types"].items():
        yield from _node_type(provider, name, node, name == tree["head_node_type"])
    yield from _head(tree)
    yield from _ports(provider, tree)
    yield from _token(tree)
    yield from _storage(tree)
    docker = tree.get("docker") or {}
    for key in ("image", "head_image", "worker_image"):
        if key in docker:
            yield from image_findings(f"docker.{key}", docker[key])
    if not docker.get("image"):
        yield Finding(
            "docker.image",
            "is missing: nodes would each install their own versions; name the image that cluster/Containerfile builds",
        )
    yield from pinned_findings(tree)
    yield from placeholders(tree)


def _schema(tree: dict) -> Iterator[Finding]:
    """Ray's draft-07 schema after its own defaults are filled in."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    for key in ("cluster_name", "available_node_types", "head_node_type"):
        if key not in tree:
            yield Finding(key, "is missing")
            return
    try:
        validate_config(prepare_config(tree))
    except jsonschema.ValidationError as error:
        named = re.findall(r"'([\w.\-]+)' (?:was|were) unexpected", error.message)
        path = [str(part) for part in error.absolute_path] + named[:1]
        yield Finding(".".join(path) or "top level", f"Ray's schema: {error.message.splitlines()[0]}")
    except (ValueError, KeyError, RuntimeError) as error:
        text = str(error)
        key = next(
            (k for k in ("head_node_type", "max_workers", "min_workers", "container_name") if k in text), "top level"
        )
        yield Finding(key, f"Ray: {text}")
    except AssertionError as error:
        yield Finding(
            "docker.container_name" if "Container" in str(error) or "container" in str(error) else "top level",
            f"Ray: {error}",
        )


def _node_type(provider: str, name: str, node: dict, is_head: bool) -> Iterator[Finding]:
    key, config = f"available_node_types.{name}", node.get("node_config") or {}
    yield from unknown_keys(config, _NODE_CONFIG[provider], f"{key}.node_config", f"a node of {provider}")
    if provider == "azure":
        yield from unknown_keys(
            config.get("azure_arm_parameters") or {},
            _ARM,
            f"{key}.node_config.azure_arm_parameters",
            "Ray's Azure template",
        )
    resources = node.get("resources") or {}
    type_key = f"{key}.node_config.{'.'.join(_TYPE_KEY[provider])}"
    kind = machine_type(provider, config)
    if kind is None:
        yield Finding(type_key, "is missing: Ray would take a machine of its own choice")
    elif (has := machine(provider, kind)) is None:
        yield Finding(type_key, f"{kind} is not in zr_ray's table: GPU and CPU counts were not compared", fatal=False)
    else:
        if resources.get("GPU", 0) != has.gpus:
            yield Finding(
                f"{key}.resources.GPU",
                f"{kind} has {has.gpus} GPU(s), got {resources.get('GPU', 0)}: Ray would believe this file",
            )
        if has.cpus and resources.get("CPU", 0) > has.cpus:
            yield Finding(f"{key}.resources.CPU", f"{kind} has {has.cpus} vCPUs, got {resources['CPU']}")
    if is_head:
        return
    if not any(resource.startswith(ROLE_PREFIX) for resource in resources):
        yield Finding(
            f"{key}.resources",
            "offers no role, for example zr_rollout: 1; workers that ask for a role never land here",
            fatal=False,
        )
    if node.get("min_workers", 0) > 0:
        yield Finding(
            f"{key}.min_workers", f"keeps {node['min_workers']} node(s) paid for around the clock", fatal=False
        )
    if f"{ROLE_PREFIX}learner" in resources and _is_spot(config):
        yield Finding(
            f"{key}.node_config",
            "a learner on spot: each preemption costs the steps since the last checkpoint",
            fatal=False,
        )


def machine_type(provider: str, node_config: dict) -> str | None:
    """The machine type that a node_config names."""
    value: object = node_config
    for name in _TYPE_KEY.get(provider, ()):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _is_spot(config: dict) -> bool:
    scheduling = config.get("scheduling") or {}
    scheduling = scheduling[0] if isinstance(scheduling, list) else scheduling
    return (
        (config.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
        or scheduling.get("provisioningModel") == "SPOT"
        or scheduling.get("preemptible") is True
        or (config.get("azure_arm_parameters") or {}).get("priority") == "Spot"
    )


def _head(tree: dict) -> Iterator[Finding]:
    name = tree["head_node_type"]
    resources = tree["available_node_types"][name].get("resources") or {}
    if "GPU" not in resources or resources["GPU"] != 0:
        yield Finding(
            f"available_node_types.{name}.resources.GPU",
            f"the head must offer 0, got {resources.get('GPU', 'nothing')}: a worker placed there dies with it, or "
            f"holds a GPU that idles",
        )
    starts = tree.get("head_start_ray_commands") or []
    start = next((c for c in starts if "ray start" in c), "")
    if "--num-gpus=0" not in start:
        yield Finding("head_start_ray_commands", "`ray start` needs --num-gpus=0, or Ray counts the head's own GPUs")
    if "--autoscaling-config" not in start:
        yield Finding(
            "head_start_ray_commands",
            "`ray start` needs --autoscaling-config=~/ray_bootstrap_config.yaml, or no node is ever added",
        )
    host = re.search(r"--dashboard-host[= ](\S+)", start)
    if host and host.group(1) not in ("127.0.0.1", "localhost"):
        yield Finding(
            "head_start_ray_commands",
            f"--dashboard-host must be 127.0.0.1, got {host.group(1)}: whoever reaches the dashboard runs code; "
            f"`ray dashboard` forwards it",
        )


def _ports(provider: str, tree: dict) -> Iterator[Finding]:
    for path, value in leaves(tree):
        if isinstance(value, str) and value.strip() in OPEN_CIDRS:
            yield Finding(path, f"{value} opens the port to everyone; name your own network")
    if tree["provider"].get("use_internal_ips") is True:
        for name, node in tree["available_node_types"].items():
            interfaces = (node.get("node_config") or {}).get("networkInterfaces")
            if provider == "gcp" and not interfaces:
                yield Finding(
                    f"available_node_types.{name}.node_config.networkInterfaces",
                    "is missing: Ray then adds one with a public address",
                )
            for i, interface in enumerate(interfaces or []):
                if interface.get("accessConfigs"):
                    yield Finding(
                        f"available_node_types.{name}.node_config.networkInterfaces.{i}.accessConfigs",
                        "gives the node a public address",
                    )
        return
    yield Finding(
        "provider.use_internal_ips",
        "must be true: with public addresses Ray's own security group lets SSH in from everywhere",
    )


def _token(tree: dict) -> Iterator[Finding]:
    options = " ".join((tree.get("docker") or {}).get("run_options") or [])
    commands = " ".join(
        c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in tree.get(key) or []
    )
    if "RAY_AUTH_MODE=token" not in options + commands:
        yield Finding(
            "docker.run_options",
            "needs --env RAY_AUTH_MODE=token: `ray start` of Ray 2.60 otherwise asks nobody for a token",
        )
    path = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options + " " + commands)
    if path is None:
        yield Finding(
            "docker.run_options",
            "needs --env RAY_AUTH_TOKEN_PATH=<file in file_mounts>: without it each node looks in its own home",
        )
    elif path.group(1) not in (tree.get("file_mounts") or {}):
        yield Finding("file_mounts", f"must bring {path.group(1)}, which RAY_AUTH_TOKEN_PATH names, to the nodes")
    if re.search(r"RAY_AUTH_TOKEN=\S", options + " " + commands):
        yield Finding("docker.run_options", "holds the token itself; name a file with RAY_AUTH_TOKEN_PATH")


def _storage(tree: dict) -> Iterator[Finding]:
    options = " ".join((tree.get("docker") or {}).get("run_options") or [])
    runs = re.search(r"ZR_RUNS=(\S+)", options)
    if runs is None:
        yield Finding(
            "docker.run_options", "needs --env ZR_RUNS=<shared folder>: run folders would lie on the head's own disk"
        )
        return
    volumes = [v.split(":")[-1] for v in re.findall(r"--volume[= ](\S+)", options) + re.findall(r"-v (\S+)", options)]
    if not any(runs.group(1).startswith(v) for v in volumes):
        yield Finding(
            "docker.run_options",
            f"ZR_RUNS={runs.group(1)} lies on no --volume: run folders would vanish with the container",
        )
