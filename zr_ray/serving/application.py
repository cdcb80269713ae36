"""The Ray Serve application: judges behind one interface, and a gateway for callers outside the cluster.

    DeploymentHandle (tensors) ------------------------------> RewardModel replicas (one judge each, batching across
    callers)
    HTTP --> Serve proxy --> Gateway (token, limits, decode) ---^      "student": scores and gradients; "teacher":
    scores after reasoning; each of `sources`: another judge, a CLIP-family scorer, a function

A replica is ready only after a forward and backward on the weights it loaded. Every reply names those weights. Updates
start new replicas before old ones stop. Calls are pure, so every one of them may be sent again.
Left out on purpose: TLS (give `serve` http_options ssl_keyfile and ssl_certfile, or a proxy in front), and who may ask
for what.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ray import serve

from zr_ray.config.serve import ServeConfig
from zr_ray.errors import ConfigError, RewardError
from zr_ray.records import ItemFault, JudgeIdentity, RewardReply, RewardRequest
from zr_ray.serving.batching import Batcher
from zr_ray.serving.cache import AnswerCache
from zr_ray.serving.deployments import GATEWAY, ROSTER, TEACHER, held_worker, judge_names, replica_of, serve_options
from zr_ray.serving.measures import Measures
from zr_ray.workers.limits import check_request

TOKEN_VARIABLE = "ZR_REWARD_TOKEN"


class RewardModel:
    """A replica: one judge, its batches, its metrics. Calls: score, describe."""

    def __init__(self, config: ServeConfig, name: str) -> None:
        self._config, self._replica = config, replica_of(config, name)
        replica = self._replica
        self._measures = Measures(serve.get_replica_context().replica_id.unique_id)
        self._worker = held_worker(config, name)  # of a judge: workers/reward.py
        self._worker.warm_up()  # raises: Serve never routes to a replica without a judge that answers
        self._batcher = Batcher(self._compute, replica.batch_items, replica.max_waiting_items)
        self._cache = AnswerCache(replica.cache_items, _lasting) if replica.cache_items else None

    async def score(self, request: RewardRequest) -> RewardReply:
        """Distributions of every item, and gradients if the request has weights. Raises RewardError for a request that
        is wrong as a whole, OverloadError when too many items wait."""
        from zr_ray.workers.reward_items import RewardItem

        try:
            check_request(request, self._config.limits.bounds(), self._worker.dimensions)
        except RewardError:
            self._measures.refused("bad_request")
            raise
        request = replace(request, dimensions=tuple(request.dimensions) or self._worker.dimensions)
        weights = item_weights(request)
        items = [
            RewardItem(image, prompt, request.dimensions, w, float(request.risk))
            for image, prompt, w in zip(request.images, request.prompts, weights, strict=True)
        ]
        answers = await (
            self._cache.answer(items, self._batcher.submit) if self._cache else self._batcher.submit(items)
        )
        return reply_of(request, self._worker.identity, answers, self._worker.bins)

    async def describe(self) -> dict:
        """Hashes, dimensions, scale and limits; counts of this replica since its start."""
        identity = self._worker.identity.__dict__
        return identity | {
            "dimensions": list(self._worker.dimensions),
            "bins": list(self._worker.bins),
            "gives_gradient": self._worker.gives_gradient,
            "dtype": self._replica.dtype,
            "limits": self._config.limits.model_dump(),
            "control_tokens": list(self._worker.control_tokens),
            "pid": os.getpid(),
            "totals": dict(self._measures.totals),
        }

    def check_health(self) -> None:
        """Called every 5 s. Serve replaces a replica whose batch does not end."""
        self._measures.refresh()
        if self._batcher.busy_s > self._replica.hang_s:
            raise RuntimeError(
                f"a batch has run for {self._batcher.busy_s:.0f} s, replica.hang_s allows {self._replica.hang_s:g}"
            )

    def _compute(self, items: list, waited_s: list[float]) -> list:
        from zr_ray.workers.reward_items import RewardAnswer

        answers = self._worker.answer(items)
        self._measures.batch(waited_s, self._worker.phases)
        scored: dict[tuple[str, ...], list] = {}
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, RewardAnswer):
                scored.setdefault(item.dimensions, []).append(answer)
            else:
                self._measures.refused(answer.status)
        for dimensions, group in scored.items():
            self._measures.scored(dimensions, _stack(a.mu for a in group), _stack(a.entropy for a in group))
        return answers


class Roster:
    """Ingress of an application of several judges without HTTP: Serve wants one; callers go to the judges by name."""

    def __init__(self, judges: dict) -> None:
        self._names = list(judges)

    async def describe(self) -> list[str]:
        """Names of the judges."""
        return self._names


def item_weights(request: RewardRequest) -> list[tuple[float, ...] | None]:
    """Per item its [D'] weights, or None for scores only."""
    count = len(request.prompts)
    if request.weights is None:
        return [None] * count
    weights = np.broadcast_to(np.asarray(request.weights, np.float64), (count, len(request.dimensions)))
    return [tuple(row) for row in weights.tolist()]


def reply_of(
    request: RewardRequest, identity: JudgeIdentity, answers: Sequence, bins: tuple[float, ...]
) -> RewardReply:
    """The reply to a request from its items' answers (RewardAnswer or ItemFault), in order. bins: the judge's scale;
    empty for plain numbers."""
    count, dims = len(answers), len(request.dimensions)
    good = [i for i, answer in enumerate(answers) if not isinstance(answer, ItemFault)]
    dtype = answers[good[0]].q.dtype if good else np.float32

    def column(name: str, *shape: int) -> np.ndarray:
        full = np.full((count, *shape), np.nan, dtype)
        if good:
            full[good] = np.stack([getattr(answers[i], name) for i in good])
        return full

    gradient = {}
    if request.weights is not None:
        scored = {i: answers[i] for i in good}
        gradient = {
            "reward": np.array([scored[i].reward if i in scored else np.nan for i in range(count)], np.float64),
            "gradients": tuple(scored[i].gradient if i in scored else None for i in range(count)),
            "scale": np.array([scored[i].scale if i in scored else np.nan for i in range(count)], np.float64),
        }
    return RewardReply(
        request_id=request.request_id,
        identity=identity,
        dimensions=tuple(request.dimensions),
        status=tuple(a.status if isinstance(a, ItemFault) else "ok" for a in answers),
        reason=tuple(a.reason if isinstance(a, ItemFault) else "" for a in answers),
        bins=bins,
        q=column("q", dims, len(bins)),
        mu=column("mu", dims),
        sigma=column("sigma", dims),
        entropy=column("entropy", dims),
        outside=column("outside", dims),
        **gradient,
    )


def _lasting(answer) -> bool:
    """Whether the same item would get the same answer again; "failed" is the judge's failure, not the item's."""
    return getattr(answer, "status", "ok") != "failed"


def _stack(rows):
    return np.stack(list(rows))


def application(config: ServeConfig) -> serve.Application:
    """The application of a checked configuration: judges, and the gateway if HTTP is on. Otherwise the one judge is its
    ingress, or of several a roster that nobody calls."""
    names = judge_names(config)
    judges = {n: serve.deployment(RewardModel).options(**serve_options(config, n)).bind(config, n) for n in names}
    if not config.http.enabled:
        if TEACHER in judges:
            raise ConfigError(
                "teacher.path needs http.enabled=true: without a gateway an application has one judge; serve the"
                " teacher as another"
            )
        if len(judges) == 1:
            return judges[names[0]]
        roster = serve.deployment(Roster).options(name=ROSTER, ray_actor_options={"num_cpus": 0})
        return roster.bind(judges)
    from zr_ray.serving.gateway import Gateway

    http = config.http
    gateway = serve.deployment(Gateway).options(
        name=GATEWAY,
        num_replicas=http.gateways,
        max_ongoing_requests=max(1024, 4 * http.max_in_flight),  # slow bodies too; the gateway itself says 429
        max_queued_requests=4 * http.max_in_flight,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        ray_actor_options={"num_cpus": http.gateway_cpus},
        graceful_shutdown_timeout_s=config.replica.drain_s,
        max_surge_percent=100,
    )
    return gateway.bind(config, token_sha256(config), judges)


def app(args: dict) -> serve.Application:
    """Builder for `serve deploy` (cluster/serve_reward.yaml): `args` are the sections of ServeConfig. Raises
    ConfigError."""
    from pydantic import ValidationError

    try:
        return application(ServeConfig.model_validate(args))
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {p['input']!r}" for p in error.errors())
        ) from None


def token_sha256(config: ServeConfig) -> str | None:
    """What the gateway compares with: the token itself never leaves the file or the variable. Raises ConfigError for an
    unusable file."""
    http = config.http
    if http.token_sha256 is not None:
        return http.token_sha256
    if http.token_file is None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        return hashlib.sha256(token.encode()).hexdigest() if token else None
    path = Path(http.token_file).expanduser()
    if not path.is_file() or not path.read_text().strip():
        raise ConfigError(
            f"http.token_file must be a file with a token, got {path}; write one, for example with `openssl rand"
            " -hex 32`"
        )
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"http.token_file {path} is readable for others (mode {path.stat().st_mode & 0o777:o}); chmod 600 {path}"
        )
    return hashlib.sha256(path.read_text().strip().encode()).hexdigest()
