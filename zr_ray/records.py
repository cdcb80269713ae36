"""What crosses processes and what stands on disk, as frozen dataclasses. Arrays are numpy: they travel through Ray without a copy.

Left out on purpose: behaviour. Reading and checking is in `data/`, sampling in `workers/`, maths in `functional/`.
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
    """Per dimension one rubric score, a bin of S (train), or every annotator's score (test). A dimension may be absent."""
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
class JudgeRequest:
    """One question to a judge: one image, one dimension."""

    key: str
    """Names the question in logs and errors, e.g. "g12-3/realism"."""
    token_ids: np.ndarray
    """[P] int32: chat-formatted prompt, the image as one single placeholder token."""
    image: np.ndarray
    """[H, W, 3] uint8 RGB."""
    seed: int
    """Seeds this request's samples; sample i uses seed + i."""


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
    """[T] float32 log-prob of each generated token under the policy that sampled it (full vocabulary, temperature 1)."""
    score_index: int | None
    """Position of the score token in token_ids; None when the output is malformed (no score within the length limit)."""
    score_logprobs: np.ndarray | None
    """[K] float32 full-vocabulary log-probs of the nine labels at score_index; None when malformed."""
    policy_version: int
    """Version of the weights that sampled it."""
