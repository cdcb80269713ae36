"""Replicas die while callers ask: no request is lost, none is wrong, none is scored 0."""

import pytest
import torch

PROMPTS = ["a small red circle", "a blue square", "purple", "a large star"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(9))


def test_killed_replicas_lose_nothing(reward_clients, reward_url, images):
    from zr_ray.serving.faults import fault_run

    right = reward_clients["handle"].score(images, PROMPTS)
    counts = fault_run("test-reward", "test-reward", right, images, PROMPTS, callers=4, seconds=10, every_s=4)
    print(dict(counts))
    assert counts["replicas_killed"] >= 1 and counts["answered"] > 0
    assert counts["lost"] == counts["errors"] == counts["wrong"] == counts["zero"] == 0
    assert counts["answered"] == counts["sent"]
