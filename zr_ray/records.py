"""What crosses processes and what stands on disk, as frozen dataclasses. Arrays are numpy: they travel through Ray
without a copy.

Left out on purpose: behavior. Reading and checking is in `data/`, sampling in `workers/`, maths in `functional/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class AnnotatedImage:
    """One prompt-image item of an annotated data set (one JSONL line)."""

    id: str
    """Unique within the data set."""
    group: str
    """Items of one group share their prompt; pairs and HPA compare inside a group only."""
    split: str
    """"train", "dev" or "test"."""
    prompt: str
    image: Path
    """Absolute path of the image file."""
    scores: dict[str, float | tuple[float, ...]]
    """Per dimension one rubric score, a bin of S (train), or every annotator's score (test). A dimension may be
    absent."""
    origin: str = "rendered"
    """Where image and scores come from, for example "rendered" (simulated world), "generated", "human"."""
    truth: dict[str, float] = field(default_factory=dict)
    """Simulated data only: the true score per dimension, rubric points, for the noise ceiling."""
    reasoning: dict[str, str] = field(default_factory=dict)
    """Optional reasoning text per dimension, without marker and score."""


@dataclass(frozen=True)
class PreferencePair:
    """A GDSO training instance: two items of one group in one dimension (method section 2)."""

    winner: AnnotatedImage
    loser: AnnotatedImage
    dimension: str
    winner_score: float
    """s-hat_w, rubric points; strictly greater than loser_score."""
    loser_score: float


@dataclass(frozen=True)
class EncodedImage:
    """An image on its way: its file's bytes, a tenth of its pixels. `data.encoded` makes it, and pixels of it where
    they are used."""

    content: bytes = field(repr=False)
    """The whole file, in one of `data.images.FORMATS`."""
    name: str
    """What errors call it, for example its path."""
    background: tuple[int, int, int]
    """RGB that transparent pixels are composited on, of the process that read the file."""
    key: str
    """32 hex digits of content and background: equal keys are equal pixels."""


AnyImage = np.ndarray | EncodedImage
"""[H, W, 3] uint8 RGB, or a file that decodes to it (`data.encoded.pixels`)."""


@dataclass(frozen=True)
class JudgeRequest:
    """One question to a judge: one image, one dimension."""

    key: str
    """Names the question in logs and errors, e.g. "g12-3/realism"."""
    token_ids: np.ndarray
    """[P] int32: chat-formatted prompt, the image as one single placeholder token."""
    image: AnyImage
    """The image asked about; as a file it is decoded by the engine's process, once for all its questions."""
    seed: int
    """Seeds this request's samples; sample i uses seed + i."""


@dataclass(frozen=True)
class ProbeQuestions:
    """What an engine is asked to prove that it holds the weights of a push; all of it is answered greedily."""

    reasoned: tuple[JudgeRequest, ...]
    """Answered by the first `tokens` tokens of the reasoning."""
    direct: tuple[JudgeRequest, ...]
    """Answered by a score alone; these questions end with the marker."""
    tokens: int

    @property
    def all(self) -> tuple[JudgeRequest, ...]:
        """In the order of the answers."""
        return self.reasoned + self.direct


@dataclass(frozen=True)
class Judgement:
    """One sampled output o = (rho, score token) of a judge."""

    key: str
    """The request's key."""
    sample: int
    """Index inside the group, 0..G-1."""
    token_ids: np.ndarray
    """[T] int32 generated tokens, the end token included if there was one."""
    logprobs: np.ndarray
    """[T] float32 log-prob of each generated token under the policy that sampled it (full vocabulary, temperature
    1)."""
    score_index: int | None
    """Position of the score token in token_ids; None when the output is malformed (no score within the length
    limit)."""
    score_logprobs: np.ndarray | None
    """[K] float32 full-vocabulary log-probs of the labels at score_index; None when malformed."""
    policy_version: int
    """Version of the weights that sampled it."""


@dataclass(frozen=True)
class ItemFault:
    """Why one item of a reward request was not scored. It never stands for a score."""

    status: str
    """Short code, one of the keys of `workers.limits.STATUSES`, for example "undecodable"."""
    reason: str
    """One line: wanted, got, what to do."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one reward request; everything above them is refused before it is computed or decoded."""

    items: int = 64
    """Items of a request."""
    pixels: int = 4_194_304
    """Width x height of an image."""
    request_pixels: int = 16_777_216
    """Pixels of all images of a request together; bounds memory."""
    prompt_chars: int = 2000
    body_bytes: int = 67_108_864
    """An HTTP body."""


@dataclass(frozen=True)
class RewardRequest:
    """B images with their prompts, for the distributions and, when weights are given, the pixel gradient of their
    reward."""

    images: np.ndarray | tuple[np.ndarray | ItemFault, ...]
    """[B, 3, H, W], or B arrays [3, H, W] of any sizes; uint8, or float16/32/64 in [0, 1]. A fault stands for what did
    not decode."""
    prompts: tuple[str | ItemFault, ...]
    dimensions: tuple[str, ...]
    """D' of the judge's dimensions: the D axis of the reply. Empty: all that the judge has, in its order."""
    weights: np.ndarray | None = None
    """[D'] or [B, D'] float: asks for R = sum_d w_d (mu_d - k sigma_d) and dR/dimages. None: scores only."""
    risk: float = 0.0
    """k, at least 0."""
    request_id: str = ""
    """Comes back in the reply and stands in the logs."""


@dataclass(frozen=True)
class JudgeIdentity:
    """What answered. Equal hashes mean equal answers."""

    judge: str
    """Name of the judge in the service, for example "student"."""
    model_hash: str
    """sha256 over the judge folder's files that decide its answers (`models.identity.judge_hash`)."""
    template_hash: str
    """sha256 over everything the judge reads around prompt and image."""
    preprocess_hash: str
    """Names the parameters of resize, normalization and patches."""


@dataclass(frozen=True)
class RewardReply:
    """Answers in the order of the request. An item that was not scored is nan everywhere; its status says why."""

    request_id: str
    identity: JudgeIdentity
    dimensions: tuple[str, ...]
    status: tuple[str, ...]
    """B codes, "ok" for a scored item."""
    reason: tuple[str, ...]
    """B lines, empty for a scored item."""
    bins: tuple[float, ...]
    """K rubric points, the judge's scale."""
    q: np.ndarray
    """[B, D', K] score distributions."""
    mu: np.ndarray
    """[B, D'] expected scores, rubric points."""
    sigma: np.ndarray
    """[B, D'] standard deviations, rubric points."""
    entropy: np.ndarray
    """[B, D'] nats."""
    outside: np.ndarray
    """[B, D'] probability on tokens that are no score label."""
    reward: np.ndarray | None = None
    """[B] R; None without weights."""
    gradients: tuple[np.ndarray | None, ...] | None = None
    """B arrays [3, H, W], largest entry in [1/2, 1]; dR/dimage is `scale[i]` times it. None for an item that was not
    scored."""
    scale: np.ndarray | None = None
    """[B] float64 powers of two, so that scaling is exact."""
