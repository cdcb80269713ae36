"""Configuration of `jobs/serve_reward.py` and `cluster/serve_reward.yaml`: which judge, how many replicas, which
limits, HTTP or not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from zr_ray.config.reward_sources import SourceSection, same_names
from zr_ray.config.sections import RunSection, Section, field
from zr_ray.config.workers import RESOURCE
from zr_ray.records import Limits

_LIMITS = Limits()


class HttpSection(Section):
    """The way in for callers outside the cluster."""

    enabled: bool = field(True, "false: no HTTP port at all, handles only")
    host: str = field("127.0.0.1", "address the proxy listens on; beyond loopback a token is required")
    port: int = field(8000, "port of the proxy; 0 picks a free one", ge=0, le=65535)
    route: str = field("/reward", "path before /v1/...", pattern=r"^/[\w\-/]*$")
    token_file: Path | None = field(
        None, "file with the bearer token (mode 0600); null: the environment's ZR_REWARD_TOKEN, else none"
    )
    token_sha256: str | None = field(
        None, "sha256 of the token in hex instead of a file, for `serve deploy`", pattern=r"^[0-9a-f]{64}$"
    )
    gateways: int = field(1, "processes that decode and check HTTP requests", ge=1)
    gateway_cpus: float = field(0.0, "CPUs reserved for each; they decode images on up to four threads", ge=0)
    max_in_flight: int = field(64, "requests one gateway works on; more get 429", ge=1)
    max_buffered_bytes: int = field(268_435_456, "bytes of bodies one gateway holds; more get 429", ge=1)
    body_deadline_s: float = field(
        10.0, "a body must end, or bring body_bytes_per_s on average, every so many seconds; else 408", gt=0
    )
    body_bytes_per_s: float = field(65536.0, "bytes per second below which a body counts as too slow", ge=0)
    request_deadline_s: float = field(120.0, "seconds until a request gets 504", gt=0)


class ServedJudgeSection(Section):
    """The model that answers."""

    path: str | None = field(
        "student",
        "`student` (built in; the base judge where the package has none), `builtin` (the base judge) or a Hugging Face"
        " folder; null: `sources` alone",
    )


class ScaledSection(Section):
    """The processes that hold a judge or a scorer."""

    replicas: int = field(1, "replicas at the start and at least", ge=1)
    max_replicas: int | None = field(None, "autoscale up to so many; null: no autoscaling", ge=1)
    target_ongoing: float = field(8.0, "requests per replica the autoscaler aims at", gt=0)
    cpus: float = field(1.0, "CPUs reserved for a replica", gt=0)
    gpus: float = field(0.0, "GPUs reserved for a replica", ge=0)
    resource: str | None = field(
        None, "custom resource a node must offer to hold replicas, for example zr_reward", pattern=RESOURCE
    )
    threads: int = field(1, "torch threads of a replica", ge=1)
    dtype: Literal["float32", "bfloat16", "float64"] = field("float32", "what the judge computes in")
    batch_items: int = field(64, "items computed together", ge=1)
    grad_items: int = field(16, "items of one backward; bounds memory", ge=1)
    max_waiting_items: int = field(1024, "items that may wait in a replica; more get 503", ge=1)
    max_ongoing: int = field(256, "requests a replica accepts at a time", ge=1)
    max_queued: int = field(512, "requests each caller may hold for a full service; more are refused", ge=1)
    cache_items: int = field(0, "answers each replica remembers, keyed by pixels, prompt and judge; 0: none", ge=0)
    hang_s: float = field(300.0, "a batch that takes longer makes the replica unhealthy, and Serve replaces it", gt=0)
    drain_s: float = field(30.0, "seconds a stopping replica may finish its requests in", gt=0)

    @model_validator(mode="after")
    def _room(self) -> ScaledSection:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas ({self.replicas}), got {self.max_replicas}")
        return self


class ReplicaSection(ScaledSection):
    """The judge's replicas."""

    start_deadline_s: float = field(600.0, "seconds until the service must be ready", gt=0)


class ServedSourceSection(SourceSection, ScaledSection):
    """A reward source beside the judge: a deployment with its own replicas and resources behind the same calls."""

    scores: tuple[str, ...] = field((), "names that a function returns; a judge and a CLIP scorer bring their own")

    @model_validator(mode="after")
    def _kind(self) -> ServedSourceSection:
        if not self.kinds:
            raise ValueError(f"source {self.name} must have a judge, a clip or a function, got none")
        if (self.function is None) != (not self.scores):
            raise ValueError(f"source {self.name}: `scores` names what a function returns, got {list(self.scores)}")
        return self


class ServedTeacherSection(Section):
    """A reasoning judge as a second, slow deployment behind the same calls (no gradients)."""

    path: str | None = field(None, "judge folder, or builtin; null: no teacher")
    traces: int = field(1, "reasoning traces averaged per question; 1 is greedy", ge=1)
    replicas: int = field(1, "teacher replicas", ge=1)
    cpus: float = field(1.0, "CPUs of a teacher replica", gt=0)
    gpus: float = field(0.0, "GPUs of a teacher replica", ge=0)
    resource: str | None = field(
        None, "custom resource a node must offer to hold teachers, for example zr_reward", pattern=RESOURCE
    )
    threads: int = field(1, "threads of a teacher's engine", ge=1)
    max_model_len: int = field(256, "tokens of question and reasoning", ge=16)
    max_new_tokens: int = field(64, "length limit of one trace with its score, tokens", ge=2)
    batch_items: int = field(32, "items the engine gets at a time", ge=1)


class LimitsSection(Section):
    """Bounds on one request; see `records.Limits`."""

    items: int = field(_LIMITS.items, "items of a request", ge=1)
    pixels: int = field(_LIMITS.pixels, "width x height of an image", ge=1)
    request_pixels: int = field(_LIMITS.request_pixels, "pixels of all images of a request together", ge=1)
    prompt_chars: int = field(_LIMITS.prompt_chars, "characters of a prompt", ge=1)
    body_bytes: int = field(_LIMITS.body_bytes, "bytes of an HTTP body", ge=1)

    def bounds(self) -> Limits:
        return Limits(**self.model_dump())


class ServeConfig(Section):
    """Configuration of the reward service."""

    run: RunSection = Field(default_factory=RunSection)
    judge: ServedJudgeSection = Field(default_factory=ServedJudgeSection)
    replica: ReplicaSection = Field(default_factory=ReplicaSection)
    teacher: ServedTeacherSection = Field(default_factory=ServedTeacherSection)
    sources: tuple[ServedSourceSection, ...] = field(
        (),
        "more judges, CLIP-family scorers and functions, each a deployment of its own: name, one of judge, clip and"
        " function, and the keys of `replica`",
    )
    http: HttpSection = Field(default_factory=HttpSection)
    limits: LimitsSection = Field(default_factory=LimitsSection)

    @model_validator(mode="after")
    def _names(self) -> ServeConfig:
        names = [source.name for source in self.sources]
        taken = {"teacher", "gateway", "roster"} | ({"student"} if self.judge.path is not None else set())
        if wrong := same_names(names) or sorted(taken & set(names)):
            raise ValueError(f"sources must have names of their own, {', '.join(wrong)} is taken; rename it")
        if self.judge.path is None and not self.sources:
            raise ValueError("judge.path may be null where `sources` has something to serve, got none")
        return self
