"""The HTTP side of the service: FastAPI behind Serve's proxy. Refuses first, decodes then, asks the judge last.

    POST <route>/v1/score             distributions           GET <route>/v1/judge   hashes, limits
    POST <route>/v1/score_and_grad    and reward gradients    GET <route>/v1/health  200 when a judge answers
    <route>/docs

200 if at least one item was scored, 422 if none was; every item has its own status. Errors are {"error": {"status",
"message"}, "request_id"}:
400 unreadable body, 401 no token, 403 wrong token, 404 unknown judge, 408 body too slow, 411 neither length nor
chunks, 413 body too large, 415 content type, 422 wrong request, 429 this gateway is full, 503 the judge is full or not
there (429, 503: Retry-After), 504 deadline. A request takes a place when its body is complete.
Left out on purpose: fetching images from URLs, cookies, CORS.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from starlette.exceptions import HTTPException

from zr_ray.config.serve import ServeConfig
from zr_ray.errors import ConfigError, DeadlineError, OverloadError, RewardError
from zr_ray.serving import openapi, schema, wire
from zr_ray.serving.admission import LOOPBACK, proxy_host, response_of
from zr_ray.serving.bodies import Bodies
from zr_ray.serving.measures import Measures
from zr_ray.serving.refusals import Refusal, WireError
from zr_ray.serving.retry import Retry

api = FastAPI(
    title="zr_ray reward service",
    description=__doc__,
    version="1",
    generate_unique_id_function=lambda route: route.name,  # generated clients are named after it: score, judge, ...
)
api.openapi = partial(openapi.document, api)
_SCORING = (400, 401, 403, 404, 408, 411, 413, 415, 422, 429, 503, 504)
_BEARER: dict = {"security": [{"bearer": []}]}
_TAKES = (wire.JSON, wire.SAFETENSORS, *wire.IMAGE_TYPES)


@api.exception_handler(HTTPException)
async def _no_such_page(request: Request, error: HTTPException) -> Response:
    """404 and 405 of the framework in the form of all others."""
    code = {404: "unknown_page", 405: "wrong_method"}.get(error.status_code, "bad_request")
    message = f"{error.detail}: {request.method} {request.url.path[:80]}; GET /openapi.json lists what there is"
    body = {"error": {"status": code, "message": message}, "request_id": uuid.uuid4().hex}
    return JSONResponse(body, error.status_code, headers=error.headers)


@serve.ingress(api)
class Gateway:
    """A gateway process. Bounded in requests, in bytes and in decoding threads. Who names no judge asks the first."""

    def __init__(self, config: ServeConfig, token_sha256: str | None, judges: dict) -> None:
        host = proxy_host()
        if token_sha256 is None and host not in LOOPBACK:
            raise ConfigError(
                f"a token is required when HTTP listens beyond loopback, it listens on {host}; set http.token_file or"
                " ZR_REWARD_TOKEN"
            )
        self._config, self._token, self._judges = config, token_sha256, judges
        self._first = next(iter(judges))
        self._limits = config.limits.bounds()
        # decoding blocks; threads of its own, so that a flood of images cannot starve what asyncio's pool serves
        self._decoders = ThreadPoolExecutor(4, thread_name_prefix="decode")
        http = config.http
        self._bodies = Bodies(
            self._limits.body_bytes, http.max_buffered_bytes, http.body_deadline_s, http.body_bytes_per_s
        )
        self._in_flight = 0
        self._dimensions: dict[str, tuple[str, ...]] = {}
        self._measures = Measures(serve.get_replica_context().replica_id.unique_id)

    @api.post(
        "/v1/score",
        responses=openapi.responses(schema.ScoreReply, *_SCORING, scores=True),
        openapi_extra=openapi.scoring(schema.ScoreRequest, rewards=False) | _BEARER,
        summary="Score distributions of images",
    )
    async def score(self, request: Request) -> Response:
        return await self._answer(request, gradient=False)

    @api.post(
        "/v1/score_and_grad",
        responses=openapi.responses(schema.ScoreReply, *_SCORING, scores=True),
        openapi_extra=openapi.scoring(schema.GradientRequest, rewards=True) | _BEARER,
        summary="Score distributions, R = sum_d w_d (mu_d - k sigma_d) and dR/dimages",
    )
    async def score_and_grad(self, request: Request) -> Response:
        return await self._answer(request, gradient=True)

    @api.get(
        "/v1/judge",
        responses=openapi.responses(schema.JudgeReply, 401, 403, 404, 422, 503, 504),
        openapi_extra=openapi.judge_parameter() | _BEARER,
        summary="What answers: hashes, score bins, limits",
    )
    async def describe(self, request: Request) -> Response:
        return await self._guarded(request, lambda _: self._describe(request))

    @api.get(
        "/v1/health",
        responses=openapi.responses(schema.HealthReply, 422, 503, 504),
        summary="200 when a judge answers; needs no token",
    )
    async def health(self, request: Request) -> Response:
        return await self._guarded(request, lambda _: self._health(request))

    async def _health(self, request: Request) -> Response:
        wire.check_query(request.query_params.multi_items(), ())
        described = await self._judges[self._first].describe.remote()
        return JSONResponse({"status": "ok", "model_hash": described["model_hash"]})

    async def _describe(self, request: Request) -> Response:
        self._authorize(request)
        query = wire.check_query(request.query_params.multi_items(), ("judge",))
        described = await self._judge(query.get("judge", self._first)).describe.remote()
        return JSONResponse(
            {k: v for k, v in described.items() if k not in ("pid", "totals")} | {"judges": list(self._judges)}
        )

    async def _answer(self, request: Request, gradient: bool) -> Response:
        return await self._guarded(request, lambda request_id: self._scored(request, request_id, gradient))

    async def _guarded(self, request: Request, work) -> Response:
        """The reply of `work`, or an error reply for what it raises."""
        given = request.headers.get("x-request-id", "")
        # a caller's id ends up in logs and headers: nothing but a plain word gets there
        request_id = given if re.fullmatch(r"[\w.\-]{1,64}", given) else uuid.uuid4().hex
        try:
            response = await asyncio.wait_for(work(request_id), self._config.http.request_deadline_s)
        except (Refusal, WireError, RewardError, DeadlineError, TimeoutError) as error:
            response = self._refused(self._refusal(error), request_id)
            # its frames hold the body, in a cycle that would keep it until a full collection
            traceback.clear_frames(error.__traceback__)
        return response  # Serve's proxy adds the X-Request-Id header

    def _refusal(self, error: Exception) -> Refusal:
        """What a caller is told of an error."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, WireError):
            return Refusal(error.http_status, "bad_request", str(error))
        if isinstance(error, OverloadError):
            return Refusal(503, "overloaded", str(error))
        if isinstance(error, RewardError):
            return Refusal(422, "bad_request", str(error))
        message = f"not answered in {self._config.http.request_deadline_s:g} s; send fewer items, or later"
        return Refusal(504, "deadline", message)

    def _refused(self, refusal: Refusal, request_id: str) -> Response:
        self._measures.refused(refusal.status)
        body = {"error": {"status": refusal.status, "message": str(refusal)[:500]}, "request_id": request_id}
        headers = {"Retry-After": "1"} if refusal.http_status in (429, 503) else {}
        if refusal.http_status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        return JSONResponse(body, refusal.http_status, headers=headers)

    async def _scored(self, request: Request, request_id: str, gradient: bool) -> Response:
        self._authorize(request)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in _TAKES or request.headers.get("content-encoding"):
            raise Refusal(415, "bad_type", f"send one of {', '.join(_TAKES)}, uncompressed; got {content_type[:80]!r}")
        own = wire.IMAGE_QUERY if content_type in wire.IMAGE_TYPES else ()
        query = wire.check_query(request.query_params.multi_items(), ("judge", *own))
        name = query.get("judge", self._first)
        handle, known = self._judge(name), await self._known(name)
        self._check_place()  # before a body is read for nothing
        async with self._bodies.read(request) as body:
            self._check_place()
            self._in_flight += 1
            try:
                return await self._judged(handle, (content_type, body, query, gradient), known, request, request_id)
            except (WireError, RewardError) as error:
                if not isinstance(error, OverloadError):
                    self._dimensions.pop(name, None)  # an update may have brought a judge of another rubric: ask again
                raise
            finally:
                self._in_flight -= 1

    async def _judged(self, handle, sent: tuple, known: tuple[str, ...], request: Request, request_id: str) -> Response:
        """sent: content type, body, query, whether a gradient is asked for."""
        loop = asyncio.get_running_loop()
        wanted = await loop.run_in_executor(self._decoders, wire.read_request, *sent, self._limits, request_id, known)
        reply = await Retry(deadline_s=self._config.http.request_deadline_s, attempts=4).call(
            lambda _: handle.score.remote(wanted)
        )
        return await loop.run_in_executor(self._decoders, response_of, reply, request.headers.get("accept", ""))

    def _check_place(self) -> None:
        if self._in_flight >= self._config.http.max_in_flight:
            raise Refusal(429, "too_many", f"this gateway works on {self._in_flight} requests; retry later")

    def _authorize(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(401, "no_token", "send the header Authorization: Bearer <token>")
        # hashes in constant time: neither the token nor its length can be guessed from how long a refusal takes
        if not hmac.compare_digest(hashlib.sha256(token.strip().encode("latin-1", "replace")).hexdigest(), self._token):
            raise Refusal(403, "wrong_token", "the bearer token is not this service's")

    def _judge(self, name: str):
        if name not in self._judges:
            raise Refusal(404, "unknown_judge", f"judges are {list(self._judges)}, got {name[:40]!r}")
        return self._judges[name]

    async def _known(self, name: str) -> tuple[str, ...]:
        """Dimensions of a judge, as one of its replicas says. Each replica checks every request again."""
        if name not in self._dimensions:
            handle = self._judge(name)
            described = await Retry(deadline_s=self._config.http.request_deadline_s, attempts=4).call(
                lambda _: handle.describe.remote()
            )
            self._dimensions[name] = tuple(described["dimensions"])
        return self._dimensions[name]
