"""Workers go to the node type that fits them most tightly; what can never be placed is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import PlacementError
from zr_ray.models.memory import Estimate
from zr_ray.operate.cluster_file import NodeType, node_types
from zr_ray.operate.jobs import JOBS
from zr_ray.operate.plan import Role, check_memory, describe, main, make_plan, roles_of

ROOT = Path(__file__).resolve().parents[2]
GPU_RUN = [
    "rollout.gpus=1", "rollout.cpus=8", "rollout.resource=zr_rollout", "rollout.dtype=bfloat16",
    "learner.gpus=1", "learner.cpus=8", "learner.workers=4", "learner.resource=zr_learner", "learner.dtype=bfloat16",
]  # fmt: skip
TYPES = [
    NodeType("head", {"CPU": 0, "GPU": 0}, 1, "", 0),
    NodeType("large", {"CPU": 32, "GPU": 4}, 1, "", 80),
    NodeType("small", {"CPU": 8, "GPU": 1}, 2, "", 24),
]


def role(name: str, workers: int, **bundle: float) -> Role:
    return Role(name, bundle, workers, None)


def test_each_role_on_its_own_nodes(capsys):
    config = [
        "gdso",
        "--config",
        str(ROOT / "jobs/configs/gdso_tiny.yaml"),
        "--cluster",
        str(ROOT / "cluster/aws.yaml"),
    ]
    assert main(config + GPU_RUN) == 0
    said = capsys.readouterr().out
    assert "rollout: 2 x {CPU: 8, GPU: 1, zr_rollout: 0.001} on rollout (g6e.4xlarge)" in said
    assert "learner: 4 x {CPU: 8, GPU: 1, zr_learner: 0.001} on learner (p4de.24xlarge)" in said
    assert "nodes at peak: 3 (2 x rollout of at most 8, 1 x learner of at most 1), and the head" in said


def test_a_node_type_that_holds_no_worker_is_refused_with_the_reason(tmp_path):
    smaller = tmp_path / "aws.yaml"
    smaller.write_text((ROOT / "cluster/aws.yaml").read_text().replace("GPU: 8, zr_learner", "GPU: 0, zr_learner"))
    overrides = ["--config", str(ROOT / "jobs/configs/gdso_tiny.yaml"), "--cluster", str(smaller), *GPU_RUN]
    with pytest.raises(
        PlacementError, match=r"no node type can hold a learner worker.*learner \(p4de.24xlarge\) has GPU 0 of 1"
    ):
        main(["gdso", *overrides])


def test_the_tightest_type_first_then_the_next():
    plan = make_plan([role("rollout", 4, GPU=1, CPU=4)], TYPES)
    assert (plan.placed["rollout"], plan.nodes) == ("small", {"large": 1, "small": 2})


def test_roles_share_a_node():
    plan = make_plan([role("rollout", 2, GPU=0.5, CPU=2), role("learner", 1, GPU=4, CPU=4)], TYPES)
    assert plan.nodes == {"large": 1, "small": 1}


def test_more_nodes_than_allowed_are_refused():
    with pytest.raises(PlacementError, match="7 rollout workers .* at most 2.*rollout.workers"):
        make_plan([role("rollout", 7, GPU=1, CPU=4)], TYPES)


def test_memory_beyond_the_gpu_is_refused_and_an_unknown_gpu_is_not():
    estimate = Estimate({"weights": 20.0, "optimizer": 60.0}, 80.0)
    check_memory("learner", estimate, 0)
    check_memory("learner", estimate, 80)
    with pytest.raises(
        PlacementError, match=r"at least 80.0 GiB \(weights 20.0, optimizer 60.0\), its GPU has 48.*zero_stage"
    ):
        check_memory("learner", estimate, 48)


@pytest.mark.parametrize(
    "name", ["aws.yaml", "gcp.yaml", "azure.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
)
def test_every_shipped_cluster_holds_the_gpu_run(name):
    config = GdsoConfig.model_validate(
        {
            "rollout": {"workers": 4, "cpus": 8, "gpus": 1, "resource": "zr_rollout", "dtype": "bfloat16"},
            "learner": {"workers": 8, "cpus": 8, "gpus": 1, "resource": "zr_learner", "dtype": "bfloat16"},
        }
    )
    lines = describe(config, ROOT / "cluster" / name)
    assert "4 x rollout" in lines[-1] and "1 x learner" in lines[-1]
    assert all(kind.gpu_gib > 0 for kind in node_types(ROOT / "cluster" / name) if kind.resources.get("GPU"))


def test_the_service_counts_its_most_replicas():
    config = JOBS["serve"].config_class.model_validate({"replica": {"max_replicas": 3, "resource": "zr_reward"}})
    assert [(r.name, r.workers, r.bundle) for r in roles_of(config)] == [
        ("replica", 3, {"CPU": 1.0, "zr_reward": 0.001})
    ]


def test_a_text_to_image_run_counts_the_replicas_of_its_reward(capsys):
    told = ["reward.replicas=2", "reward.gpus=1", "reward.dtype=bfloat16", "actor.gpus=1", "actor.workers=2"]
    assert main(["t2i", "--cluster", str(ROOT / "cluster" / "aws.yaml"), "t2i.prompts_per_step=8", *told]) == 0
    text = capsys.readouterr().out
    assert "reward: 2 x {CPU: 1, GPU: 1}" in text and "actor: 2 x {CPU: 1, GPU: 1}" in text
    assert text.count("memory") == 1  # of the judge; a generator's is not estimated
    sources = [{"name": "student", "judge": "student"}, {"name": "own", "function": "a.b:c", "weights": {"x": 1}}]
    config = JOBS["t2i"].config_class.model_validate({"reward": {"sources": sources}})
    assert [(r.name, r.workers) for r in roles_of(config)] == [("actor", 1), ("reward-student", 1), ("reward-own", 1)]
    elsewhere = JOBS["t2i"].config_class.model_validate({"reward": {"target": "somebodys"}})
    assert [r.name for r in roles_of(elsewhere)] == ["actor"]
