"""GPUs, their memory and vCPUs of the machine types that a cluster file may name, from the providers' public tables
(November 2026).

A type that is not listed is not refused: `validate` says that it could not compare.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU_GIB = {
    "T4": 16, "V100": 16, "A10G": 24, "A10": 24, "L4": 24, "L40S": 48, "A100-40": 40, "A100-80": 80, "H100": 80,
    "H100-NVL": 94,
    "H200": 141, "B200": 180,
}  # fmt: skip
"""Memory of one GPU as it is sold, GiB; drivers keep back some hundred MiB."""


@dataclass(frozen=True)
class Machine:
    """What one machine type has."""

    gpus: int
    gpu: str
    """Key of GPU_GIB; empty without a GPU."""
    cpus: int
    """vCPUs; 0 where the table does not say."""

    @property
    def gpu_gib(self) -> float:
        """Memory of one GPU, GiB; 0 without a GPU."""
        return float(GPU_GIB.get(self.gpu, 0))


_EC2_SIZES = {
    "xlarge": 4,
    "2xlarge": 8,
    "4xlarge": 16,
    "8xlarge": 32,
    "12xlarge": 48,
    "16xlarge": 64,
    "24xlarge": 96,
    "48xlarge": 192,
}
_EC2_GPUS = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}  # of g5, g6, g6e; the smaller ones and 16xlarge have one
_EC2 = {
    f"{family}.{size}": Machine(_EC2_GPUS.get(size, 1), gpu, cpus)
    for family, gpu in (("g5", "A10G"), ("g6", "L4"), ("g6e", "L40S"))
    for size, cpus in _EC2_SIZES.items()
} | {
    "g4dn.xlarge": Machine(1, "T4", 4),
    "g4dn.2xlarge": Machine(1, "T4", 8),
    "g4dn.12xlarge": Machine(4, "T4", 48),
    "p3.2xlarge": Machine(1, "V100", 8),
    "p4d.24xlarge": Machine(8, "A100-40", 96),
    "p4de.24xlarge": Machine(8, "A100-80", 96),
    "p5.4xlarge": Machine(1, "H100", 16),
    "p5.48xlarge": Machine(8, "H100", 192),
    "p5en.48xlarge": Machine(8, "H200", 192),
    "p6-b200.48xlarge": Machine(8, "B200", 192),
}
_GCE = (
    {f"a2-highgpu-{n}g": Machine(n, "A100-40", 12 * n) for n in (1, 2, 4, 8)}
    | {f"a2-ultragpu-{n}g": Machine(n, "A100-80", 12 * n) for n in (1, 2, 4, 8)}
    | {f"a3-highgpu-{n}g": Machine(n, "H100", 26 * n) for n in (1, 2, 4, 8)}
    | {
        f"g2-standard-{cpus}": Machine({24: 2, 48: 4, 96: 8}.get(cpus, 1), "L4", cpus)
        for cpus in (4, 8, 12, 16, 24, 32, 48, 96)
    }
    | {"a3-megagpu-8g": Machine(8, "H100", 208), "a3-ultragpu-8g": Machine(8, "H200", 224)}
)
_AZURE = (
    {f"Standard_NC{24 * n}ads_A100_v4": Machine(n, "A100-80", 24 * n) for n in (1, 2, 4)}
    | {f"Standard_NC{cpus}as_T4_v3": Machine(1 if cpus < 64 else 4, "T4", cpus) for cpus in (4, 8, 16, 64)}
    | {
        "Standard_NC40ads_H100_v5": Machine(1, "H100-NVL", 40),
        "Standard_NC80adis_H100_v5": Machine(2, "H100-NVL", 80),
        "Standard_NV36ads_A10_v5": Machine(1, "A10", 36),
        "Standard_ND96asr_v4": Machine(8, "A100-40", 96),
        "Standard_ND96amsr_A100_v4": Machine(8, "A100-80", 96),
        "Standard_ND96isr_H100_v5": Machine(8, "H100", 96),
        "Standard_ND96isr_H200_v5": Machine(8, "H200", 96),
    }
)
MACHINES = {"aws": _EC2, "gcp": _GCE, "azure": _AZURE}
"""Provider -> machine type -> what it has."""

NODE_SELECTORS = {
    "nvidia-tesla-t4": "T4", "nvidia-l4": "L4", "nvidia-tesla-a100": "A100-40", "nvidia-a100-80gb": "A100-80",
    "nvidia-h100-80gb": "H100",
    "nvidia-h100-mega-80gb": "H100", "nvidia-h200-141gb": "H200", "nvidia-b200": "B200", "NVIDIA-L4": "L4",
    "NVIDIA-L40S": "L40S",
    "NVIDIA-A100-SXM4-80GB": "A100-80", "NVIDIA-A100-SXM4-40GB": "A100-40", "NVIDIA-H100-80GB-HBM3": "H100",
    "NVIDIA-H200": "H200",
}  # fmt: skip
"""Values of the node labels cloud.google.com/gke-accelerator and nvidia.com/gpu.product -> key of GPU_GIB."""


def ec2_family_has_no_gpu(name: str) -> bool:
    """Whether an EC2 type is of a family without accelerator: c, m, r, t and their variants."""
    return name[:1] in "cmrt" and name[1:2].isdigit()


def machine(provider: str, name: str) -> Machine | None:
    """What a machine type has, or None if this table does not know it."""
    known = MACHINES.get(provider, {}).get(name)
    if known is None and provider == "aws" and ec2_family_has_no_gpu(name):
        size = name.rsplit(".", 1)[-1]
        return Machine(0, "", _EC2_SIZES.get(size, 2 if size == "large" else 0))
    if (
        known is None
        and provider == "gcp"
        and name.split("-")[0] in ("e2", "n1", "n2", "n2d", "n4", "c2", "c3", "c4", "t2d")
    ):
        return Machine(0, "", int(name.rsplit("-", 1)[-1]) if name.rsplit("-", 1)[-1].isdigit() else 0)
    if (
        known is None
        and provider == "azure"
        and name.startswith(("Standard_D", "Standard_E", "Standard_F", "Standard_B"))
    ):
        digits = "".join(c for c in name.split("_")[1] if c.isdigit())
        return Machine(0, "", int(digits or 0))
    return known
