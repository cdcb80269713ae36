"""One client of the reward service for both transports, sync and async; rewards are differentiable with respect to the
images.

    client = RewardClient("http://127.0.0.1:8000/reward")         or, inside the cluster,  RewardClient("app-name")
    client.reward(images, prompts).sum().backward()                fills images.grad with the gradient the service
    computed

A call is split into requests of `items_per_request` and of as many bytes as the service takes; at most `max_in_flight`
are under way, each is repeated with jitter on back-pressure, replica loss and restarts until the deadline. Items that
cannot be scored come back with a status and nan, the others with their scores.
Left out on purpose: second derivatives, and gradients with respect to prompts.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zr_ray.errors import RewardError
from zr_ray.records import Limits, RewardReply, RewardRequest
from zr_ray.serving.call import Images, item_faults, names_of, parts, request_of, weights_of
from zr_ray.serving.line import Line
from zr_ray.serving.retry import Retry
from zr_ray.serving.scores import Scores, joined
from zr_ray.serving.transport import HandleTransport, HttpTransport, check_target
from zr_ray.workers.limits import check_request


class RewardClient:
    """Holds one event loop in a thread. Safe to use from several threads. In a forked child, or unpickled elsewhere, it
    makes a connection of its own. Closes itself when it is forgotten or the program ends; `with` and `close` do so
    earlier."""

    def __init__(
        self,
        target: str,
        token: str | None = None,
        judge: str = "student",
        dimensions: Sequence[str] | None = None,
        items_per_request: int = 16,
        max_in_flight: int = 8,
        deadline_s: float = 120.0,
        attempts: int | None = None,
    ) -> None:
        """target: URL of the service with its route, or the name of a Serve application. token: bearer token (default:
        the environment's ZR_REWARD_TOKEN, for URLs). dimensions: the D axis; None: all that the judge has. deadline_s:
        of one request with all its attempts. attempts: at most so many; None: until the deadline.
        Raises: RewardError for a target that is neither, or an application that is not there."""
        self._made_with = (
            target,
            token,
            judge,
            None if dimensions is None else names_of(dimensions),
            items_per_request,
            max_in_flight,
            deadline_s,
            attempts,
        )
        self._http, self._dimensions = check_target(target), self._made_with[3]
        self._items, self._deadline_s, self._attempts = items_per_request, deadline_s, attempts
        self.counters: Counter[str] = Counter()
        """requests, answered, failed, and repeated/<reason>."""
        self._known: dict | None = None
        self._inherited: list[Line] = []
        self._line = self._connect()

    def __reduce__(self) -> tuple:
        return RewardClient, self._made_with

    def _connect(self) -> Line:
        target, token, judge, _, _, max_in_flight, _, _ = self._made_with

        def transport() -> HandleTransport | HttpTransport:
            if not self._http:
                return HandleTransport(target, judge)
            return HttpTransport(target, token or os.environ.get("ZR_REWARD_TOKEN"), judge, max_in_flight)

        line = Line(transport, max_in_flight)
        weakref.finalize(self, line.close)
        return line

    def _here(self) -> Line:
        """The line of this process. A forked child keeps its parent's unused: collecting it would touch its sockets."""
        if self._line.pid != os.getpid():
            if not self._http:
                raise RewardError(
                    "a client of a Serve application cannot cross a fork, as Ray cannot; give it the service's"
                    " http:// address, or start the process by spawn"
                )
            self._inherited.append(self._line)
            self._line = self._connect()
        return self._line

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the D axis: those given, or the judge's, which the service is asked for once."""
        if self._dimensions is not None:
            return self._dimensions
        return tuple(self._wait(self._service())["dimensions"])

    # ---- calls ----

    def score(self, images: Images, prompts: Sequence[str], dimensions: Sequence[str] | None = None) -> Scores:
        """Score distributions.   Raises: RewardError if the request is wrong as a whole, DeadlineError,
        OverloadError."""
        return self._wait(self._call(images, prompts, dimensions))

    async def score_async(
        self, images: Images, prompts: Sequence[str], dimensions: Sequence[str] | None = None
    ) -> Scores:
        """`score` for callers with an event loop of their own."""
        return await self._from_any_loop(self._call(images, prompts, dimensions))

    def score_and_grad(
        self,
        images: Images,
        prompts: Sequence[str],
        weights: Tensor | None = None,
        risk: float = 0.0,
        dimensions: Sequence[str] | None = None,
    ) -> Scores:
        """Score distributions with R = sum_d w_d (mu_d - k sigma_d) and dR/dimages. weights: [D] or [B, D]; None: 1/D
        each. risk: k."""
        return self._wait(self._call(images, prompts, dimensions, (weights, risk)))

    async def score_and_grad_async(
        self,
        images: Images,
        prompts: Sequence[str],
        weights: Tensor | None = None,
        risk: float = 0.0,
        dimensions: Sequence[str] | None = None,
    ) -> Scores:
        """`score_and_grad` for callers with an event loop of their own."""
        return await self._from_any_loop(self._call(images, prompts, dimensions, (weights, risk)))

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
        if not isinstance(images, Tensor):
            raise RewardError(f"images must be one tensor [B, 3, H, W], got {type(images).__name__}; stack them")
        if images.requires_grad and torch.is_grad_enabled():
            return _ServedReward.apply(images, self, prompts, weights, risk, dimensions, allow_failed)
        # without a need for gradients only scores are asked for; weights and risk are checked alike
        work = self._call(images, prompts, dimensions, (weights, risk), gradient=False, whole=not allow_failed)
        scores = self._wait(work)
        _refuse_failed(scores, allow_failed)
        weighed = torch.from_numpy(weights_of(weights, scores.mu.shape[-1]))
        value = weighed * (scores.mu.double() - float(risk) * scores.sigma.double())
        return value.sum(-1).to(images if images.is_floating_point() else torch.float32)

    def close(self) -> None:
        """End the connections and the thread."""
        self._line.close()

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ---- requests ----

    def _call(
        self, images, prompts, dimensions, reward: tuple | None = None, gradient: bool = True, whole: bool = False
    ) -> Coroutine:
        """What to await for the scores. Raises RewardError for what no service would take.

        reward: (weights, risk), or None for scores only. gradient: ask for R and its gradient, not only check the two.
        whole: items that the service would not score are refused as well."""
        named = self._dimensions if dimensions is None else names_of(dimensions)
        request = request_of(images, prompts, named, *(reward or (None, 0.0)))
        return self._ask(request, reward is not None, gradient, whole)

    async def _ask(self, request: RewardRequest, rewarded: bool, gradient: bool, whole: bool) -> Scores:
        known = await self._service()
        if rewarded and request.weights is None:
            count = len(request.dimensions or known["dimensions"])
            request = replace(request, weights=weights_of(None, count))
        check_request(request, Limits(items=len(request.prompts)), known["dimensions"])
        if whole and (faults := item_faults(request, Limits(**known["limits"]), known["control_tokens"])):
            raise _failed_items(faults, len(request.prompts))
        if not gradient:
            request = replace(request, weights=None)
        limits = known["limits"]
        requests = parts(request, min(self._items, limits["items"]), limits["body_bytes"])
        tasks = [asyncio.ensure_future(self._send(part)) for part in requests]
        try:
            return joined(await asyncio.gather(*tasks), request.images)
        finally:
            for task in tasks:
                task.cancel()

    def _retry(self) -> Retry:
        return Retry(self._deadline_s, self._attempts, whom=self._line.transport.name)

    async def _service(self) -> dict:
        """What the service says of itself: limits, control tokens, hashes. Asked once for a judge."""
        if self._known is None:
            self._known = await self._retry().call(self._line.transport.describe)
        return self._known

    async def _send(self, request: RewardRequest) -> RewardReply:
        async with self._line.slots:
            self.counters["requests"] += 1
            retry = self._retry()
            try:
                reply = await retry.call(lambda left_s: self._line.transport.send(request, left_s))
            except BaseException:
                self.counters["failed"] += 1
                self._known = None  # perhaps another judge answers by now
                raise
            finally:
                self.counters.update({f"repeated/{reason}": count for reason, count in retry.repeated.items()})
            if reply.request_id != request.request_id:
                raise RewardError(
                    f"the reply must carry request id {request.request_id}, got {reply.request_id}; report this"
                )
            self.counters["answered"] += 1
            if self._known is not None and reply.identity.model_hash != self._known.get("model_hash"):
                self._known = None  # another judge has other control tokens
            return reply

    def _wait(self, work: Coroutine):
        return self._line_for(work).wait(work)

    def _from_any_loop(self, work: Coroutine):
        return asyncio.wrap_future(self._line_for(work).begin(work))

    def _line_for(self, work: Coroutine) -> Line:
        try:
            return self._here()
        except BaseException:
            work.close()
            raise


class _ServedReward(torch.autograd.Function):
    """R of served distributions; backward multiplies with the gradient that came in the same reply."""

    @staticmethod
    def forward(ctx, images, client, prompts, weights, risk, dimensions, allow_failed):
        call = client._call(images, prompts, dimensions, (weights, risk), whole=not allow_failed)
        scores = client._wait(call)
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
        raise _failed_items(bad, len(scores.status))


def _failed_items(faults: Sequence[str], count: int) -> RewardError:
    return RewardError(
        f"{len(faults)} of {count} items were not scored: {'; '.join(faults[:3])}; correct them, or allow_failed=True"
    )
