"""Judging without reasoning by the learner itself: no engine, one packed forward for all dimensions of an item.

Gives the numbers of one-token requests to a vLLM engine with these weights (fp32, 1e-5; tested), without a weight push.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zr_ray.data.images import load_image
from zr_ray.judging.evaluate import Judged
from zr_ray.models.questions import QuestionRow
from zr_ray.records import AnnotatedImage
from zr_ray.workers.learner import Learner


def judge_directly(learner: Learner, items: Sequence[AnnotatedImage], batch_items: int) -> Judged:
    """Label log-probs of all items in all dimensions; every rank judges its share and gets the whole. All ranks call
    it.

    Args: learner: its packer packs `QuestionRow`s. batch_items: images held in memory at a time."""
    rubric = learner.text.rubric
    shape = (len(items), len(rubric.dimensions), len(rubric.bins))
    labels = torch.zeros(shape, dtype=torch.float64)
    mine = list(range(learner.rank, len(items), learner.world))
    for start in range(0, -(-len(items) // learner.world), batch_items):
        chunk = mine[start : start + batch_items]
        rows = [
            QuestionRow(load_image(items[i].image), items[i].prompt, rubric.dimensions) for i in chunk or [0]
        ]  # a rank without items takes part
        batches = learner.microbatches([[row] for row in rows])
        for n in range(int(learner.reduce_max(float(len(batches))))):
            batch = batches[n] if n < len(batches) else batches[0]
            made = learner.forward([rows[i] for i in batch]).score_logprobs
            if chunk and n < len(batches):
                labels[[chunk[i] for i in batch]] = made.double().cpu().view(-1, *shape[1:])
    if learner.world > 1:
        labels = torch.tensor(learner.reduce_sum(labels.flatten().tolist()), dtype=torch.float64).view(shape)
    return Judged(labels.unsqueeze(2), torch.ones(*shape[:2], 1), rubric, (("",) * shape[1],) * shape[0])
