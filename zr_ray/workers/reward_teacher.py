"""Teacher worker: a reasoning judge behind the interface of `RewardWorker`. It writes a trace per question, then its
score distribution.

q is the mean over traces of the distributions at the score token (method section 4). The engine reads 8-bit images, so
float pixels are rounded, and there is no gradient: tokens are discrete.
Left out on purpose: streaming the traces; who wants to read them uses `jobs/evaluate.py`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from zr_ray.config.serve import ServedTeacherSection
from zr_ray.config.workers import RolloutSection
from zr_ray.errors import JudgeError
from zr_ray.functional.aggregation import score_deviation
from zr_ray.functional.risd import average_distributions
from zr_ray.functional.scores import expected_score, outside_mass, score_entropy, score_log_distribution
from zr_ray.models.identity import judge_hash, template_hash
from zr_ray.models.judge_text import JudgeText
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.records import ItemFault, JudgeIdentity, JudgeRequest, Limits
from zr_ray.workers.limits import check_image, check_prompt
from zr_ray.workers.reward_items import RewardAnswer, RewardItem
from zr_ray.workers.rollout import RolloutWorker


class TeacherWorker:
    """Owns one engine. Verbs as RewardWorker's: warm_up, answer."""

    gives_gradient = False

    def __init__(self, folder: Path | str, engine: RolloutWorker, traces: int = 1, limits: Limits = Limits()) -> None:
        """engine: holds the judge of `folder`. traces: reasoning traces averaged per question; 1 is greedy."""
        self._engine, self._traces, self.limits = engine, traces, limits
        self.text: JudgeText = engine.text
        self._preprocess = PixelPreprocessor.load(folder)
        self.identity = JudgeIdentity(
            "teacher", judge_hash(folder), template_hash(self.text), self._preprocess.fingerprint
        )
        self.control_tokens = self.text.control_tokens
        self.rubric = self.text.rubric
        self.dimensions, self.bins = self.rubric.dimensions, self.rubric.bins
        self._bins = torch.tensor(self.rubric.bins)
        self.phases: dict[str, float] = {}

    def warm_up(self) -> None:
        """One question per dimension through the engine. Raises JudgeError unless each gets a score."""
        (answer,) = self.answer([RewardItem(np.full((3, 64, 64), 128, np.uint8), "a photo", self.rubric.dimensions)])
        if isinstance(answer, ItemFault):
            raise JudgeError(
                f"the teacher must answer its warm-up questions, got {answer.status}: {answer.reason}; check its"
                " weights, or teacher.max_new_tokens"
            )

    def answer(self, items: Sequence[RewardItem]) -> list[RewardAnswer | ItemFault]:
        """Answers in order; an item whose traces reach no score in some dimension is a fault."""
        started = time.perf_counter()
        answers: list[RewardAnswer | ItemFault | None] = [self._check(item) for item in items]
        asked = [(i, d) for i, item in enumerate(items) if answers[i] is None for d in item.dimensions]
        requests = [_question(self.text, items[i], d, f"{i}/{d}") for i, d in asked]
        batched = time.perf_counter()
        groups = self._engine.generate(requests, self._traces, 0.0 if self._traces == 1 else 1.0) if requests else []
        self.phases = {"batch": batched - started, "forward": time.perf_counter() - batched}
        self.text.forget()
        found = dict(zip(asked, groups, strict=True))
        for i, item in enumerate(items):
            if answers[i] is None:
                answers[i] = self._answer_item([found[i, d] for d in item.dimensions])
        return cast(list[RewardAnswer | ItemFault], answers)  # every place is filled by now

    def _check(self, item: RewardItem) -> ItemFault | None:
        if item.weights is not None:
            return ItemFault("no_gradient", "a reasoning judge gives no gradient; ask for scores, or ask the student")
        fault = check_image(item.image, self.limits) or check_prompt(item.prompt, self.limits, self.control_tokens)
        if fault is not None:
            return fault
        longest = (
            max(len(self.text.question(item.prompt, d)) for d in item.dimensions)
            - 1
            + self._preprocess.image_tokens(*item.image.shape[1:])
        )
        room = self._engine.config.max_model_len - self._engine.config.max_new_tokens
        if longest > room:
            return ItemFault(
                "prompt_too_long",
                f"image and question may take {room} tokens, got {longest}; shorten the prompt, or raise"
                " teacher.max_model_len",
            )
        return None

    def _answer_item(self, groups: list) -> RewardAnswer | ItemFault:
        rows, outside = [], []
        for group in groups:
            scored = [torch.from_numpy(j.score_logprobs) for j in group if j.score_index is not None]
            if not scored:
                return ItemFault(
                    "failed", f"none of {len(group)} reasoning traces reached a score within the length limit"
                )
            labels = torch.stack(scored)
            rows.append(average_distributions(score_log_distribution(labels)))
            outside.append(outside_mass(labels).mean(0))
        log_q = torch.stack(rows)
        if not log_q.isfinite().all():
            return ItemFault("failed", "the teacher's answer is not finite; report the image")
        columns = (
            log_q.exp(),
            expected_score(log_q, self._bins),
            score_deviation(log_q, self._bins),
            score_entropy(log_q),
            torch.stack(outside),
        )
        return RewardAnswer(*(column.float().numpy() for column in columns))


def teacher_engine(folder: Path | str, config: ServedTeacherSection) -> RolloutWorker:
    """The vLLM engine of a teacher replica."""
    section = RolloutSection(
        threads=config.threads,
        cpus=config.cpus,
        gpus=config.gpus,
        max_model_len=config.max_model_len,
        max_new_tokens=config.max_new_tokens,
        max_num_seqs=4 * config.batch_items,
    )
    return RolloutWorker(str(folder), section)


def _question(text: JudgeText, item: RewardItem, dimension: str, key: str) -> JudgeRequest:
    """The seed comes from the item: its answer does not depend on its neighbors, and a repeated call gets the same
    one."""
    pixels = item.image if item.image.dtype == np.uint8 else np.rint(np.clip(item.image, 0, 1) * 255).astype(np.uint8)
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    seed = zlib.crc32(item.prompt.encode(), zlib.crc32(pixels.tobytes())) >> 1
    return JudgeRequest(key, text.question(item.prompt, dimension), pixels, seed)
