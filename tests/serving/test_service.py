"""The real service gives what the student gives in this process: scores, gradients, item by item, over both
transports."""

import asyncio
import re

import pytest
import torch

from zr_ray.errors import RewardError
from zr_ray.functional.aggregation import aggregate_reward
from zr_ray.models.student import Student
from zr_ray.rubric import DIMENSIONS

PROMPTS = ["a small red circle", "a blue square left of a large green star", "purple"]


@pytest.fixture(scope="module")
def student(judge_path):
    return Student(judge_path)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def test_handle_http_and_process_agree(reward_clients, student, images):
    with torch.no_grad():
        local = student(images, PROMPTS)
    for name, client in reward_clients.items():
        scores = client.score(images, PROMPTS)
        assert scores.status == ("ok",) * 3, name
        torch.testing.assert_close(scores.q, local.log_q.exp(), atol=1e-6, rtol=0)
        torch.testing.assert_close(scores.mu, local.mu, atol=1e-6, rtol=0)
        torch.testing.assert_close(scores.outside, local.outside, atol=1e-6, rtol=0)
        assert (scores.sigma > 0).all() and (scores.entropy > 0).all()
        assert len(set(scores.model_hash)) == 1 and len(scores.model_hash[0]) == 64


def test_uint8_and_mixed_sizes(reward_clients, student):
    generator = torch.Generator().manual_seed(1)
    mixed = [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in ((64, 64), (100, 80), (64, 64))
    ]
    for client in reward_clients.values():
        got = client.score(mixed, PROMPTS, ["realism"])
        for i, image in enumerate(mixed):
            with torch.no_grad():
                alone = student(image[None].float() / 255, PROMPTS[i : i + 1], ["realism"])
            torch.testing.assert_close(got.mu[i : i + 1], alone.mu, atol=1e-5, rtol=0)


def test_backward_fills_the_gradient(reward_clients, student, images):
    weights, risk = torch.tensor([0.5, 1.0, -0.25, 2.0]), 0.3
    local = images.clone().requires_grad_()
    expected = aggregate_reward(student(local, PROMPTS).log_q, student.bins, weights, risk)
    outer = torch.tensor([1.0, -3.0, 0.5])
    (expected * outer).sum().backward()
    assert local.grad.abs().max() > 1e-4
    for client in reward_clients.values():
        x = images.clone().requires_grad_()
        reward = client.reward(x, PROMPTS, weights, risk)
        torch.testing.assert_close(reward, expected.detach(), atol=1e-5, rtol=0)
        (reward * outer).sum().backward()
        # batches of other shapes round differently: 1.7e-7 was seen where the largest slope is of order .1
        torch.testing.assert_close(x.grad, local.grad, atol=1e-6, rtol=1e-5)


def test_served_gradient_equals_float64_differences(reward_clients, judge_path, images):
    exact = Student(judge_path, torch.float64)
    weights = torch.tensor([[1.0, 0.5, 0.25, 2.0]], dtype=torch.float64)
    x = images[:1].clone().requires_grad_()
    reward_clients["handle"].reward(x, PROMPTS[:1], weights[0].float(), 0.5).sum().backward()
    directions = torch.randn(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    step = 1e-6
    for direction in directions:
        with torch.no_grad():
            plus, minus = (
                aggregate_reward(
                    exact(images[:1].double() + s * direction, PROMPTS[:1]).log_q, exact.bins, weights, 0.5
                )
                for s in (step, -step)
            )
        slope = float((plus - minus) / (2 * step))
        assert float((x.grad.double() * direction).sum()) == pytest.approx(slope, rel=2e-4, abs=2e-5)


def test_neighbors_change_nothing(reward_clients, images):
    client = reward_clients["handle"]
    alone = [client.score_and_grad(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]

    async def crowd():
        return await asyncio.gather(
            *[client.score_and_grad_async(images.roll(k, 0), PROMPTS[-k:] + PROMPTS[:-k]) for k in (0, 1, 2) * 3]
        )

    for k, together in zip((0, 1, 2) * 3, asyncio.run(crowd()), strict=True):
        for i in range(3):
            own = (i - k) % 3
            torch.testing.assert_close(together.q[i], alone[own].q[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.gradients[i], alone[own].gradients[0], atol=1e-7, rtol=1e-4)


def test_a_bad_item_is_no_zero(reward_clients, images):
    broken = images.clone()
    broken[1, 0, 5, 5] = torch.nan
    for client in reward_clients.values():
        good = client.score(images, PROMPTS)
        got = client.score_and_grad(broken, [PROMPTS[0], PROMPTS[1], " "])
        assert got.status == ("ok", "bad_pixels", "empty_prompt")
        assert got.mu[1:].isnan().all() and got.reward[1:].isnan().all() and got.gradients[1].isnan().all()
        torch.testing.assert_close(got.mu[0], good.mu[0], atol=1e-5, rtol=0)
        with pytest.raises(Exception, match="2 of 3 items were not scored: 1: bad_pixels"):
            client.reward(broken.requires_grad_(), [PROMPTS[0], PROMPTS[1], " "])
        broken = broken.detach()
        x = broken.clone().requires_grad_()
        reward = client.reward(x, PROMPTS, allow_failed=True)
        reward[[0, 2]].sum().backward()
        assert x.grad[1].abs().max() == 0 and x.grad[0].abs().max() > 0


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>"])
def test_control_tokens_are_refused_before_anything_is_sent(reward_clients, images, token):
    """What the loader refuses, with and without a gradient, in words that name the token."""
    for client in reward_clients.values():
        client.reward(images, PROMPTS)  # the client knows the judge from here on
        sent = client.counters["requests"]
        for x in (images, images.clone().requires_grad_()):
            with pytest.raises(RewardError, match=f"control tokens.*{re.escape(token)}"):
                client.reward(x, [*PROMPTS[:2], f"a red {token} cube"])
        assert client.counters["requests"] == sent


def test_order_and_splitting(reward_url, reward_clients, images):
    from zr_ray.serving.client import RewardClient

    many, prompts = images.repeat(4, 1, 1, 1), PROMPTS * 4
    with RewardClient(
        reward_url, token="a-token-for-tests", items_per_request=5, dimensions=DIMENSIONS[::-1]
    ) as client:
        split = client.score(many, prompts)
        assert client.counters["requests"] == client.counters["answered"] == 3
    whole = reward_clients["handle"].score(many, prompts)
    torch.testing.assert_close(split.mu, whole.mu.flip(-1), atol=1e-5, rtol=0)


def test_a_forgotten_client_closes_itself(reward_url, images):
    import gc

    from zr_ray.serving.client import RewardClient

    client = RewardClient(reward_url, token="a-token-for-tests")
    client.score(images, PROMPTS)
    session, thread = client._line.transport._session, client._line.thread
    del client
    gc.collect()
    assert session.closed and not thread.is_alive()
