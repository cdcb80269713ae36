"""The HTTP side of the service: FastAPI behind Serve's proxy. Refuses first, decodes then, asks the judge last.

    POST <route>/v1/score             distributions           GET <route>/v1/judge   hashes, limits
    POST <route>/v1/score_and_grad    and reward gradients    GET <route>/v1/health  200 when a judge answers
    <route>/docs

200 if at least one item was scored, 422 if none was; every item has its own status. Errors are {"error": {"status",
"message"}, "request_id"}:
400 unreadable body, 401 no token, 403 wrong token, 404 unknown judge, 411 neither length nor chunks, 413 body too
large, 415 content type, 422 wrong request, 429 this gateway is full, 503 the judge is full or not there (429, 503:
Retry-After), 504 deadline.
Left out on purpose: fetching images from URLs, cookies, CORS.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve

from zr_ray.config.serve import ServeConfig
from zr_ray.errors import ConfigError, DeadlineError, OverloadError, RewardError
from zr_ray.rubric import Rubric
from zr_ray.serving import wire
from zr_ray.serving.admission import LOOPBACK, Refusal, proxy_host, response_of
from zr_ray.serving.measures import Measures
from zr_ray.serving.retry import Retry

api = FastAPI(title="zr_ray reward service", description=__doc__, version="1")
_IMAGES = {name: {"schema": {"type": "string", "format": "binary"}} for name in (wire.SAFETENSORS, *wire.IMAGE_FORMATS)}
_EXAMPLE = {
    "items": [{"image": "<base64 of an image file>", "prompt": "a small red circle"}],
    "dimensions": ["alignment"],
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {wire.JSON: {"schema": {"type": "object"}, "example": _EXAMPLE}} | _IMAGES,
    }
}


@serve.ingress(api)
class Gateway:
    """A gateway process. Bounded in requests, in bytes and in decoding threads."""

    def __init__(self, config: ServeConfig, token_sha256: str | None, judges: dict) -> None:
        host = proxy_host()
        if token_sha256 is None and host not in LOOPBACK:
            raise ConfigError(
                f"a token is required when HTTP listens beyond loopback, it listens on {host}; set http.token_file or"
                " ZR_REWARD_TOKEN"
            )
        self._config, self._token, self._judges = config, token_sha256, judges
        self._limits = config.limits.bounds()
        # decoding blocks; threads of its own, so that a flood of images cannot starve what asyncio's pool serves
        self._decoders = ThreadPoolExecutor(4, thread_name_prefix="decode")
        self._in_flight = self._buffered = 0
        self._rubrics: dict[str, Rubric] = {}
        self._measures = Measures(serve.get_replica_context().replica_id.unique_id)

    @api.post("/v1/score", openapi_extra=_BODY, summary="Score distributions of images")
    async def score(self, request: Request, judge: str = "student") -> Response:
        return await self._answer(request, judge, gradient=False)

    @api.post(
        "/v1/score_and_grad",
        openapi_extra=_BODY,
        summary="Score distributions, R = sum_d w_d (mu_d - k sigma_d) and dR/dimages",
    )
    async def score_and_grad(self, request: Request, judge: str = "student") -> Response:
        return await self._answer(request, judge, gradient=True)

    @api.get("/v1/judge", summary="What answers: hashes, dimensions, score bins, limits")
    async def describe(self, request: Request, judge: str = "student") -> Response:
        return await self._guarded(request, lambda _: self._describe(request, judge))

    @api.get("/v1/health", summary="200 when a judge answers; needs no token")
    async def health(self, request: Request) -> Response:
        return await self._guarded(request, lambda _: self._health())

    async def _health(self) -> Response:
        described = await self._judges["student"].describe.remote()
        return JSONResponse({"status": "ok", "model_hash": described["model_hash"]})

    async def _describe(self, request: Request, judge: str) -> Response:
        self._authorise(request)
        described = await self._judge(judge).describe.remote()
        return JSONResponse(
            {k: v for k, v in described.items() if k not in ("pid", "totals")} | {"judges": list(self._judges)}
        )

    async def _answer(self, request: Request, judge: str, gradient: bool) -> Response:
        return await self._guarded(request, lambda request_id: self._scored(request, request_id, judge, gradient))

    async def _guarded(self, request: Request, work) -> Response:
        """The reply of `work`, or an error reply for what it raises."""
        given = request.headers.get("x-request-id", "")
        # a caller's id ends up in logs and headers: nothing but a plain word gets there
        request_id = given if re.fullmatch(r"[\w.\-]{1,64}", given) else uuid.uuid4().hex
        try:
            response = await asyncio.wait_for(work(request_id), self._config.http.request_deadline_s)
        except Refusal as error:
            response = self._refused(error, request_id)
        except wire.WireError as error:
            response = self._refused(Refusal(error.http_status, "bad_request", str(error)), request_id)
        except OverloadError as error:
            response = self._refused(Refusal(503, "overloaded", str(error)), request_id)
        except RewardError as error:
            response = self._refused(Refusal(422, "bad_request", str(error)), request_id)
        except (TimeoutError, DeadlineError):
            message = f"not answered in {self._config.http.request_deadline_s:g} s; send fewer items, or later"
            response = self._refused(Refusal(504, "deadline", message), request_id)
        return response  # Serve's proxy adds the X-Request-Id header

    def _refused(self, refusal: Refusal, request_id: str) -> Response:
        self._measures.refused(refusal.status)
        body = {"error": {"status": refusal.status, "message": str(refusal)[:500]}, "request_id": request_id}
        again = {"Retry-After": "1"} if refusal.http_status in (429, 503) else {}
        return JSONResponse(
            body, refusal.http_status, headers=again | {"Connection": "close"} if refusal.http_status == 413 else again
        )

    async def _scored(self, request: Request, request_id: str, judge: str, gradient: bool) -> Response:
        self._authorise(request)
        handle = self._judge(judge)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (wire.JSON, wire.SAFETENSORS, *wire.IMAGE_FORMATS) or request.headers.get(
            "content-encoding"
        ):
            raise Refusal(
                415,
                "bad_type",
                f"send {wire.JSON}, {wire.SAFETENSORS} or {list(wire.IMAGE_FORMATS)}, uncompressed; got"
                f" {content_type[:80]!r}",
            )
        rubric = await self._rubric(judge)
        if self._in_flight >= self._config.http.max_in_flight:
            raise Refusal(429, "too_many", f"this gateway works on {self._in_flight} requests; retry later")
        self._in_flight += 1
        held = [0]  # bytes of this request, given back below even when reading it fails half-way
        try:
            body = await self._read(request, held)
            loop, query = asyncio.get_running_loop(), dict(request.query_params)
            wanted = await loop.run_in_executor(
                self._decoders, wire.read_request, content_type, body, query, gradient, self._limits, request_id, rubric
            )
            del body  # decoded now; a waiting request should not hold both
            reply = await Retry(deadline_s=self._config.http.request_deadline_s, attempts=4).call(
                lambda _: handle.score.remote(wanted)
            )
            return await loop.run_in_executor(self._decoders, response_of, reply, request.headers.get("accept", ""))
        except (wire.WireError, RewardError) as error:
            if not isinstance(error, OverloadError):
                self._rubrics.pop(judge, None)  # an update may have brought a judge of another rubric: ask again
            raise
        finally:
            self._in_flight -= 1
            self._buffered -= held[0]

    async def _read(self, request: Request, held: list[int]) -> bytes:
        """The body, refused as soon as it is known to be too large; `held` counts what is buffered."""
        limit, length = self._limits.body_bytes, request.headers.get("content-length")
        if length is None and "chunked" not in request.headers.get("transfer-encoding", ""):
            raise Refusal(411, "no_length", "send Content-Length, or chunks")
        if length is not None and (not length.isascii() or not length.isdigit() or int(length[:20]) > limit):
            raise Refusal(
                413,
                "body_too_large",
                f"a body may have {limit} bytes, got Content-Length {length[:20]}; split the request",
            )
        parts, size = [], 0  # counted as it comes: Content-Length may be false, and chunks have none
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise Refusal(413, "body_too_large", f"a body may have {limit} bytes, got more; split the request")
            if self._buffered + len(chunk) > self._config.http.max_buffered_bytes:
                raise Refusal(429, "too_many", f"this gateway holds {self._buffered} bytes of requests; retry later")
            self._buffered += len(chunk)
            held[0] += len(chunk)
            parts.append(chunk)
        return b"".join(parts)

    def _authorise(self, request: Request) -> None:
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

    async def _rubric(self, name: str) -> Rubric:
        """Dimensions and bins of a judge, as one of its replicas says. Each replica checks every request again."""
        if name not in self._rubrics:
            handle = self._judge(name)
            described = await Retry(deadline_s=self._config.http.request_deadline_s, attempts=4).call(
                lambda _: handle.describe.remote()
            )
            self._rubrics[name] = Rubric(tuple(described["dimensions"]), tuple(described["bins"]))
        return self._rubrics[name]
