"""Teacher worker: a reasoning judge behind the interface of `RewardWorker`. It writes a trace per question, then its score distribution.

q is the mean over traces of the distributions at the score token (method section 4). The engine reads 8-bit images, so float pixels are
rounded, and there is no gradient: tokens are discrete.
Left out on purpose: streaming the traces; who wants to read them uses `jobs/evaluate.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from zr_ray.config import RolloutSection
from zr_ray.config_serve import TeacherSection
from zr_ray.errors import JudgeError
from zr_ray.functional.aggregation import score_deviation
from zr_ray.functional.scores import expected_score, outside_mass, score_entropy, score_log_distribution
from zr_ray.models.identity import judge_hash, template_hash
from zr_ray.models.judge import JudgeText
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.records import ItemFault, JudgeIdentity, JudgeRequest
from zr_ray.rubric import DIMENSIONS, SCORE_BINS
from zr_ray.serving.limits import Limits, check_image, check_prompt
from zr_ray.workers.reward import RewardAnswer, RewardItem
from zr_ray.workers.rollout import RolloutWorker


class TeacherWorker:
    """Owns one vLLM engine. Verbs as RewardWorker's: warm_up, answer."""

    gives_gradient = False

    def __init__(self, folder: Path | str, config: TeacherSection, limits: Limits = Limits()) -> None:
        engine = RolloutSection(
            threads=config.threads, cpus=config.cpus, gpus=config.gpus, max_model_len=config.max_model_len,
            max_new_tokens=config.max_new_tokens, max_num_seqs=4 * config.batch_items,
        )  # fmt: skip
        self._worker = RolloutWorker(str(folder), engine)
        self.text: JudgeText = self._worker.text
        self.limits, self._traces = limits, config.traces
        preprocess = PixelPreprocessor.load(folder).fingerprint
        self.identity = JudgeIdentity("teacher", judge_hash(folder), template_hash(self.text), preprocess)
        special = {t.content for t in self.text.tokenizer.added_tokens_decoder.values() if t.special} | set(self.text.tokenizer.all_special_tokens)
        self._control_tokens = tuple(sorted(special))
        self._bins = torch.tensor(SCORE_BINS)
        self.phases: dict[str, float] = {}

    def warm_up(self) -> None:
        """One question through the engine. Raises JudgeError if it has no answer with a score in any dimension."""
        (answer,) = self.answer([RewardItem(np.full((3, 64, 64), 128, np.uint8), "a photo", DIMENSIONS)])
        if isinstance(answer, ItemFault) and answer.status != "failed":
            raise JudgeError(f"the teacher must answer its warm-up question, got {answer.status}: {answer.reason}")

    def answer(self, items: Sequence[RewardItem]) -> list[RewardAnswer | ItemFault]:
        """Answers in order; an item whose traces reach no score in some dimension is a fault."""
        started = time.perf_counter()
        answers: list[RewardAnswer | ItemFault | None] = [self._check(item) for item in items]
        asked = [(i, d) for i, item in enumerate(items) if answers[i] is None for d in item.dimensions]
        requests = [
            JudgeRequest(f"{i}/{d}", self.text.question(items[i].prompt, d), _pixels(items[i].image), 1000 * i) for i, d in asked
        ]
        batched = time.perf_counter()
        groups = self._worker.generate(requests, self._traces, 0.0 if self._traces == 1 else 1.0) if requests else []
        self.phases = {"batch": batched - started, "forward": time.perf_counter() - batched}
        self.text.forget()
        found = dict(zip(asked, groups, strict=True))
        for i, item in enumerate(items):
            if answers[i] is None:
                answers[i] = self._answer_item([found[i, d] for d in item.dimensions])
        return answers

    def _check(self, item: RewardItem) -> ItemFault | None:
        if item.weights is not None:
            return ItemFault("no_gradient", "a reasoning judge gives no gradient; ask for scores, or ask the student")
        return check_image(item.image, self.limits) or check_prompt(item.prompt, self.limits, self._control_tokens)

    def _answer_item(self, groups: list) -> RewardAnswer | ItemFault:
        rows, outside = [], []
        for group in groups:
            scored = [torch.from_numpy(j.score_logprobs) for j in group if j.score_index is not None]
            if not scored:
                return ItemFault("failed", f"none of {len(group)} reasoning traces reached a score within the length limit")
            labels = torch.stack(scored)
            rows.append(score_log_distribution(labels).exp().mean(0))
            outside.append(outside_mass(labels).mean(0))
        q = torch.stack(rows)
        log_q = q.log()
        columns = (q, expected_score(log_q, self._bins), score_deviation(log_q, self._bins), score_entropy(log_q), torch.stack(outside))
        return RewardAnswer(*(column.float().numpy() for column in columns))


def _pixels(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8."""
    pixels = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
