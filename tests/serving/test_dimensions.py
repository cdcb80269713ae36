"""Dimensions of a served judge: the client takes them from the service."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zr_ray.errors import RewardError
from zr_ray.records import JudgeIdentity, RewardReply
from zr_ray.rubric import PAPER
from zr_ray.serving.scores import joined


def reply(dimensions, bins):
    two = np.ones((1, len(dimensions)), np.float32)
    columns = dict.fromkeys(("mu", "sigma", "entropy", "outside"), two)
    identity = JudgeIdentity("student", "a", "b", "c")
    q = np.full((1, len(dimensions), len(bins)), 1 / len(bins), np.float32)
    return RewardReply("id", identity, dimensions, ("ok",), ("",), bins, q, **columns)


def test_parts_of_two_judges_are_not_put_together():
    one = reply(("layout", "realism"), (0.0, 1.0, 2.0))
    both = joined([one, one], ())
    assert both.dimensions == one.dimensions and both.bins == one.bins and both.q.shape == (2, 2, 3)
    for other in (replace(one, dimensions=("realism", "layout")), replace(one, bins=(0.0, 1.0, 3.0))):
        with pytest.raises(RewardError, match="the same dimensions and bins"):
            joined([one, other], ())


def test_the_service_says_what_it_scores(reward_clients):
    """The clients were told no dimensions: both transports ask the service, and name the axis in their answers."""
    image = torch.full((1, 3, 64, 64), 0.5)
    for client in reward_clients.values():
        assert client.dimensions == PAPER.dimensions
        scores = client.score_and_grad(image, ["a red circle"])
        assert scores.dimensions == PAPER.dimensions and scores.bins == PAPER.bins
        with pytest.raises(RewardError, match="dimensions must be different names of .*alignment.* got .*layout"):
            client.score(image, ["a red circle"], ["layout"])
