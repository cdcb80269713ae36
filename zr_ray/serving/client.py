"""One client of the reward service for both transports, sync and async; rewards are differentiable with respect to the
images.

    client = RewardClient("http://127.0.0.1:8000/reward")         or, inside the cluster,  RewardClient("app-name")
    client.reward(images, prompts).sum().backward()                fills images.grad with the gradient the service
    computed

A call is split into requests of `items_per_request`; at most `max_in_flight` are under way, each is repeated with
jitter on back-pressure and replica loss until the deadline. Items that cannot be scored come back with a status and
nan, the others with their scores.
Left out on purpose: second derivatives, and gradients with respect to prompts.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zr_ray.errors import RewardError
from zr_ray.records import RewardReply, RewardRequest
from zr_ray.serving.retry import Retry
from zr_ray.serving.transport import HandleTransport, HttpTransport

Images: TypeAlias = Tensor | Sequence[Tensor]
"""[B, 3, H, W], or B tensors [3, H, W] of any sizes; uint8, or float in [0, 1]."""


@dataclass(frozen=True)
class Scores:
    """Replies put together, in the order of the images. nan where status is not "ok"."""

    q: Tensor
    """[B, D, K]."""
    mu: Tensor
    sigma: Tensor
    entropy: Tensor
    outside: Tensor
    """[B, D] each; as in RewardReply."""
    status: tuple[str, ...]
    reason: tuple[str, ...]
    model_hash: tuple[str, ...]
    """B: during a rolling update the parts of one call may come from two judges."""
    dimensions: tuple[str, ...] = ()
    """D names."""
    bins: tuple[float, ...] = ()
    """K rubric points, the judge's scale."""
    reward: Tensor | None = None
    """[B] float64."""
    gradients: tuple[Tensor, ...] | None = None
    """B tensors [3, H, W], dR/dimage with its scale put back; nan where not scored."""

    @property
    def ok(self) -> Tensor:
        """[B] bool."""
        return torch.tensor([status == "ok" for status in self.status])


class RewardClient:
    """Holds one event loop in a thread. Safe to use from several threads. Closes itself when it is forgotten or the
    program ends; `with` and `close` do so earlier."""

    def __init__(
        self,
        target: str,
        token: str | None = None,
        judge: str = "student",
        dimensions: Sequence[str] | None = None,
        items_per_request: int = 16,
        max_in_flight: int = 8,
        deadline_s: float = 120.0,
        attempts: int = 40,
    ) -> None:
        """target: URL of the service with its route, or the name of a Serve application. token: bearer token (default:
        the environment's ZR_REWARD_TOKEN, for URLs). dimensions: the D axis; None: all that
        the judge has. deadline_s: of one request with all its
        attempts."""
        self._dimensions = None if dimensions is None else tuple(dimensions)
        self._items, self._deadline_s, self._attempts = items_per_request, deadline_s, attempts
        self.counters: Counter[str] = Counter()
        """requests, answered, failed, and repeated/<reason>."""
        # a loop of its own: callers may have none, or one that must not be blocked
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_turn, args=(self._loop,), name="reward-client", daemon=True)
        self._thread.start()
        self._slots = asyncio.Semaphore(max_in_flight)
        http = target.startswith(("http://", "https://"))
        if http:
            self._transport = HttpTransport(target, token or os.environ.get("ZR_REWARD_TOKEN"), judge, max_in_flight)
        else:
            self._transport = HandleTransport(target, judge)
        self._close = weakref.finalize(self, _end, self._loop, self._thread, self._transport)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the D axis: those given, or the judge's, which the service is asked for once."""
        return self._wait(self._names())

    # ---- calls ----

    def score(self, images: Images, prompts: Sequence[str], dimensions: Sequence[str] | None = None) -> Scores:
        """Score distributions.   Raises: RewardError if the request is wrong as a whole, DeadlineError,
        OverloadError."""
        return self._wait(self._ask(images, prompts, dimensions))

    async def score_async(
        self, images: Images, prompts: Sequence[str], dimensions: Sequence[str] | None = None
    ) -> Scores:
        """`score` for callers with an event loop of their own."""
        return await self._from_any_loop(self._ask(images, prompts, dimensions))

    def score_and_grad(
        self,
        images: Images,
        prompts: Sequence[str],
        weights: Tensor | None = None,
        risk: float = 0.0,
        dimensions: Sequence[str] | None = None,
    ) -> Scores:
        """Distributions, R = sum_d w_d (mu_d - k sigma_d) and dR/dimages. weights: [D] or [B, D]; None: 1/D each. risk:
        k."""
        return self._wait(self._ask_gradient(images, prompts, weights, risk, dimensions))

    async def score_and_grad_async(
        self,
        images: Images,
        prompts: Sequence[str],
        weights: Tensor | None = None,
        risk: float = 0.0,
        dimensions: Sequence[str] | None = None,
    ) -> Scores:
        """`score_and_grad` for callers with an event loop of their own."""
        return await self._from_any_loop(self._ask_gradient(images, prompts, weights, risk, dimensions))

    def reward(
        self,
        images: Tensor,
        prompts: Sequence[str],
        weights: Tensor | None = None,
        risk: float = 0.0,
        dimensions: Sequence[str] | None = None,
        allow_failed: bool = False,
    ) -> Tensor:
        """[B] R, with a backward that puts the served gradient into `images` (float [B, 3, H, W] on any device).

        allow_failed: items that cannot be scored are nan, and their gradient is nan unless nothing downstream depends
        on them; otherwise they raise RewardError naming them. Without a need for gradients only scores are asked
        for."""
        if images.requires_grad and torch.is_grad_enabled():
            return _ServedReward.apply(images, self, tuple(prompts), weights, risk, dimensions, allow_failed)
        scores = self.score(images, prompts, dimensions)
        _refuse_failed(scores, allow_failed)
        value = torch.from_numpy(_weights(weights, scores.mu.shape[-1])) * (
            scores.mu.double() - risk * scores.sigma.double()
        )
        return value.sum(-1).to(images if images.is_floating_point() else torch.float32)

    def close(self) -> None:
        """End the connections and the thread."""
        self._close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ---- requests ----

    async def _names(self) -> tuple[str, ...]:
        if self._dimensions is None:
            described = await Retry(self._deadline_s, self._attempts).call(self._transport.describe)
            self._dimensions = tuple(described["dimensions"])
        return self._dimensions

    async def _ask_gradient(self, images, prompts, weights: Tensor | None, risk: float, dimensions) -> Scores:
        named = tuple(dimensions or await self._names())
        return await self._ask(images, prompts, named, _weights(weights, len(named)), risk)

    async def _ask(self, images, prompts, dimensions, weights: np.ndarray | None = None, risk: float = 0.0) -> Scores:
        if len(images) != len(prompts) or not len(prompts):
            raise RewardError(f"every image needs one prompt, got {len(images)} images and {len(prompts)} prompts")
        arrays = _arrays(images)
        requests = []
        for start in range(0, len(prompts), self._items):
            part = slice(start, start + self._items)
            own = weights[part] if weights is not None and weights.ndim == 2 else weights
            named = tuple(dimensions or self._dimensions or ())
            requests.append(
                RewardRequest(arrays[part], tuple(prompts[part]), named, own, float(risk), uuid.uuid4().hex)
            )
        tasks = [asyncio.ensure_future(self._send(request)) for request in requests]
        try:
            return _joined(await asyncio.gather(*tasks), arrays)
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, request: RewardRequest) -> RewardReply:
        async with self._slots:
            self.counters["requests"] += 1
            retry = Retry(self._deadline_s, self._attempts)
            try:
                reply = await retry.call(lambda left_s: self._transport.send(request, left_s))
            except BaseException:
                self.counters["failed"] += 1
                raise
            finally:
                self.counters.update({f"repeated/{reason}": count for reason, count in retry.repeated.items()})
            if reply.request_id != request.request_id:
                raise RewardError(
                    f"the reply must carry request id {request.request_id}, got {reply.request_id}; report this"
                )
            self.counters["answered"] += 1
            return reply

    def _wait(self, work: Coroutine):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _from_any_loop(self, work: Coroutine):
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


def _weights(weights: Tensor | None, count: int) -> np.ndarray:
    """[D] or [B, D] float64; 1/D each where none are given."""
    return np.full(count, 1 / count) if weights is None else torch.as_tensor(weights).detach().cpu().double().numpy()


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread, transport: HandleTransport | HttpTransport) -> None:
    async def close() -> None:
        await transport.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)
    if threading.current_thread() is not thread:  # the last reference may go there
        thread.join(10)


class _ServedReward(torch.autograd.Function):
    """R of served distributions; backward multiplies with the gradient that came in the same reply."""

    @staticmethod
    def forward(ctx, images, client, prompts, weights, risk, dimensions, allow_failed):
        scores = client.score_and_grad(images, prompts, weights, risk, dimensions)
        _refuse_failed(scores, allow_failed)
        ctx.save_for_backward(torch.stack(scores.gradients).to(images))
        return scores.reward.to(images)

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        (gradients,) = ctx.saved_tensors
        outer = outer.view(-1, 1, 1, 1)
        return torch.where(outer == 0, torch.zeros_like(gradients), outer * gradients), *[None] * 6


def _refuse_failed(scores: Scores, allow_failed: bool) -> None:
    bad = [f"{i}: {s} ({r})" for i, (s, r) in enumerate(zip(scores.status, scores.reason, strict=True)) if s != "ok"]
    if bad and not allow_failed:
        raise RewardError(
            f"{len(bad)} of {len(scores.status)} items were not scored: {'; '.join(bad[:3])}; correct them, or"
            " allow_failed=True"
        )


def _arrays(images: Images) -> np.ndarray | tuple[np.ndarray, ...]:
    if isinstance(images, Tensor):
        return _array(images)
    return tuple(_array(image) for image in images)


def _array(image: Tensor) -> np.ndarray:
    image = image.detach().cpu()
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()


def _joined(replies: Sequence[RewardReply], images) -> Scores:
    axes = {(reply.dimensions, reply.bins) for reply in replies}
    if len(axes) > 1:
        raise RewardError(
            "the parts of a call must come from judges with the same dimensions and bins, the service changed its judge"
            f" in between: {sorted(axes)}; call again"
        )
    columns = {
        name: torch.from_numpy(np.concatenate([getattr(r, name) for r in replies]))
        for name in ("q", "mu", "sigma", "entropy", "outside")
    }
    gradient = {}
    if replies[0].reward is not None:
        pairs = [(g, s) for r in replies for g, s in zip(r.gradients, r.scale, strict=True)]
        gradients = tuple(
            torch.full(image.shape, torch.nan) if g is None else torch.from_numpy(np.array(g) * np.asarray(s, g.dtype))
            for image, (g, s) in zip(images, pairs, strict=True)
        )
        gradient = {"reward": torch.from_numpy(np.concatenate([r.reward for r in replies])), "gradients": gradients}
    return Scores(
        **columns,
        status=sum((tuple(r.status) for r in replies), ()),
        reason=sum((tuple(r.reason) for r in replies), ()),
        model_hash=tuple(r.identity.model_hash for r in replies for _ in r.status),
        dimensions=replies[0].dimensions,
        bins=replies[0].bins,
        **gradient,
    )
