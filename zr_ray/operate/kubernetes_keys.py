"""The keys that KubeRay's and Kubernetes' objects have, as far as the manifests in cluster/kuberay use or may use them.

A key that is not here is refused by `validate`, so a typo is found offline. `validate --crds FOLDER` compares with
the complete definitions instead of these (files rayclusters, rayjobs, rayservices as in KubeRay's Helm chart).
Left out on purpose: types and value ranges of Kubernetes' own objects; the API server checks them with `kubectl apply
--dry-run=server`.
"""

from __future__ import annotations


def _any(text: str) -> dict[str, type]:
    """Keys with values of any type."""
    return dict.fromkeys(text.split(), object)


FREE = None
"""Any mapping: labels, annotations, selectors, resource amounts."""

_ENV = [{"name": str, "value": str, "valueFrom": FREE}]
_RESOURCES = {"requests": FREE, "limits": FREE, "claims": list}
_RULES = {"ingressRules": [{"from": list, "ports": list}], "egressRules": [{"to": list, "ports": list}]}

_MOUNT = _any("name mountPath readOnly subPath subPathExpr mountPropagation recursiveReadOnly")
_VOLUME = _any(
    "name configMap csi downwardAPI emptyDir ephemeral fc hostPath image iscsi nfs persistentVolumeClaim projected"
    " secret"
)
_SECURITY = _any(
    "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount readOnlyRootFilesystem runAsGroup"
    " runAsNonRoot runAsUser seLinuxOptions seccompProfile windowsOptions"
)
CONTAINER = {
    "name": str, "image": str, "imagePullPolicy": str, "command": list, "args": list, "workingDir": str, "env": _ENV,
    "envFrom": list,
    "ports": [{"name": str, "containerPort": int, "protocol": str, "hostPort": int, "hostIP": str}],
    "resources": _RESOURCES,
    "volumeMounts": [_MOUNT],
    "volumeDevices": list, "livenessProbe": FREE, "readinessProbe": FREE, "startupProbe": FREE, "lifecycle": FREE,
    "securityContext": _SECURITY,
    "stdin": bool, "stdinOnce": bool, "tty": bool, "terminationMessagePath": str, "terminationMessagePolicy": str,
    "resizePolicy": list, "restartPolicy": str,
}  # fmt: skip
POD_TEMPLATE = {
    "metadata": FREE,
    "spec": {
        "containers": [CONTAINER], "initContainers": [CONTAINER], "ephemeralContainers": list,
        "volumes": [_VOLUME],
        "tolerations": [_any("key operator value effect tolerationSeconds")],
        "nodeSelector": FREE, "affinity": FREE, "topologySpreadConstraints": list, "securityContext": FREE,
        "imagePullSecrets": list,
        "serviceAccountName": str, "automountServiceAccountToken": bool, "priorityClassName": str, "restartPolicy": str,
        "terminationGracePeriodSeconds": int, "activeDeadlineSeconds": int, "hostNetwork": bool, "hostPID": bool,
        "hostIPC": bool,
        "dnsPolicy": str, "dnsConfig": FREE, "schedulerName": str, "runtimeClassName": str, "nodeName": str,
        "subdomain": str,
        "hostname": str, "hostAliases": list, "shareProcessNamespace": bool, "enableServiceLinks": bool,
        "preemptionPolicy": str,
        "readinessGates": list, "resourceClaims": list, "schedulingGates": list, "overhead": FREE, "os": FREE,
        "priority": int,
    },
}  # fmt: skip
_GROUP = {"rayStartParams": FREE, "labels": FREE, "resources": FREE, "template": POD_TEMPLATE}
RAY_CLUSTER_SPEC = {
    "rayVersion": str, "suspend": bool, "managedBy": str, "headServiceAnnotations": FREE,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": ("v1", "v2"), "idleTimeoutSeconds": int, "upscalingMode": ("Default", "Aggressive",
        "Conservative"), "image": str,
        "imagePullPolicy": str, "resources": _RESOURCES, "env": _ENV, "envFrom": list, "volumeMounts": list,
        "securityContext": FREE,
        "command": list, "args": list,
    },
    "authOptions": {"mode": ("token", "disabled"), "secretName": str, "enableK8sTokenAuth": bool},
    "gcsFaultToleranceOptions": {
        "redisAddress": str, "redisUsername": FREE, "redisPassword": {"value": str, "valueFrom": FREE},
        "externalStorageNamespace": str,
        "backend": ("redis", "rocksdb"), "storage": FREE,
    },
    "networkPolicy": {
        "mode": ("DenyAll", "DenyAllIngress", "DenyAllEgress"), "head": _RULES, "worker": _RULES,
        "workerGroups": [{"groupName": str} | _RULES],
    },
    "tlsOptions": {"enabled": bool}, "historyServerOptions": FREE, "upgradeStrategy": {"type": ("Recreate", "None")},
    "headGroupSpec": _GROUP | {"serviceType": ("ClusterIP", "NodePort", "LoadBalancer"), "headService": FREE,
    "enableIngress": bool,
                               "ingressOptions": FREE},
    "workerGroupSpecs": [_GROUP | {
        "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int,
        "idleTimeoutSeconds": int,
        "suspend": bool, "priority": int, "scaleStrategy": FREE}],
}  # fmt: skip
RAY_JOB_SPEC = {
    "entrypoint": str, "runtimeEnvYAML": str, "jobId": str, "metadata": FREE, "rayClusterSpec": RAY_CLUSTER_SPEC,
    "clusterSelector": FREE,
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "submitterPodTemplate": POD_TEMPLATE,
    "submitterConfig": FREE, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "preRunningDeadlineSeconds": int, "backoffLimit": int, "deletionStrategy": FREE, "suspend": bool, "managedBy": str,
    "entrypointNumCpus": float, "entrypointNumGpus": float, "entrypointResources": str,
}  # fmt: skip
RAY_SERVICE_SPEC = {
    "serveConfigV2": str, "rayClusterConfig": RAY_CLUSTER_SPEC, "serviceUnhealthySecondThreshold": int,
    "deploymentUnhealthySecondThreshold": int, "rayClusterDeletionDelaySeconds": int,
    "excludeHeadPodFromServeSvc": bool,
    "serveService": FREE, "upgradeStrategy": {"type": ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
    "clusterUpgradeOptions": FREE},
    "suspend": bool, "managedBy": str,
}  # fmt: skip
OBJECTS = {
    kind: {"apiVersion": ("ray.io/v1",), "kind": (kind,), "metadata": FREE, "spec": spec}
    for kind, spec in (("RayCluster", RAY_CLUSTER_SPEC), ("RayJob", RAY_JOB_SPEC), ("RayService", RAY_SERVICE_SPEC))
}
"""kind -> tree: a mapping of known keys, [tree] for a list, a type, a tuple of allowed values, FREE."""
