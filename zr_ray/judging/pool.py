"""A student's scores of many images: a fleet of the reward service's own workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.audit import AuditConfig
from zr_ray.data.images import load_image
from zr_ray.records import AnnotatedImage
from zr_ray.rubric import Rubric
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import wait_for

SCORING_BATCH = 64
"""Images scored at a time: bounds memory."""


def score_pool(
    run: RunFolder, student: Path, items: Sequence[AnnotatedImage], config: AuditConfig, rubric: Rubric
) -> Tensor:
    """[I, D, K] float64 log q by a fleet of the reward service's own workers; nan where an item could not be scored."""
    from zr_ray.run.learners import learner_environment
    from zr_ray.run.placement import Fleet

    section, deadline_s = config.student, config.rollout.deadline_s
    scorers = Fleet(
        StudentScorer,
        section,
        f"{run.run_id}/student",
        (str(student), section.dtype, "cuda" if section.gpus else "cpu", section.threads),
        environment=learner_environment(section, 1),
        start_deadline_s=config.rollout.start_deadline_s,
        wait_for_nodes_s=config.run.wait_for_nodes_s,
    )
    shape = (len(items), len(rubric.dimensions), len(rubric.bins))
    log_q = torch.full(shape, float("nan"), dtype=torch.float64)
    with scorers as fleet:
        count = len(fleet.workers)
        asked = [scorer.log_q.remote(list(items[n::count])) for n, scorer in enumerate(fleet.workers)]
        for n, answer in enumerate(wait_for(asked, deadline_s, "the student's scores")):
            log_q[n::count] = torch.from_numpy(answer)
    return log_q


class StudentScorer:
    """Owns the student under audit. Verbs: log_q, describe."""

    def __init__(self, student: str, dtype: str, device: str, threads: int) -> None:
        from zr_ray.workers.reward import RewardWorker

        torch.set_num_threads(threads)
        self.worker = RewardWorker(student, dtype=dtype, device=device)

    def describe(self) -> str:
        """Hash of the judge it holds."""
        return self.worker.identity.model_hash

    def log_q(self, items: Sequence[AnnotatedImage]) -> np.ndarray:
        """[I, D, K] float64 nats; nan for an item that the worker refuses."""
        from zr_ray.workers.reward_items import RewardAnswer, RewardItem

        rubric = self.worker.rubric
        log_q = np.full((len(items), len(rubric.dimensions), len(rubric.bins)), np.nan)
        for start in range(0, len(items), SCORING_BATCH):
            chunk = items[start : start + SCORING_BATCH]
            answers = self.worker.answer(
                [RewardItem(load_image(i.image).transpose(2, 0, 1), i.prompt, rubric.dimensions) for i in chunk]
            )
            for i, answer in enumerate(answers, start):
                if isinstance(answer, RewardAnswer):
                    log_q[i] = np.log(np.maximum(answer.q.astype(np.float64), 1e-30))
        return log_q
