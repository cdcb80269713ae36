"""Scoring under a given trace, on the real engine: one's own trace gives back one's own score."""

import numpy as np
import pytest

from zr_ray.judging.ask import generate, question, score
from zr_ray.judging.swap import question_with_trace, swap_traces, widest_pairs
from zr_ray.models.judge_text import JudgeText
from zr_ray.rubric import DIMENSIONS


@pytest.fixture(scope="module")
def text(judge_path):
    return JudgeText(judge_path)


def test_own_trace_gives_the_own_score(fleet, text, world_items):
    requests = [question(text, item, d, seed=n) for n, item in enumerate(world_items[:4]) for d in DIMENSIONS]
    answers = [group[0] for group in generate(fleet.workers, requests, 1, 1.0, 120, "traces")]
    whole = [n for n, answer in enumerate(answers) if answer.score_index is not None]
    assert whole, "the built-in judge writes scores"
    traces = {n: answers[n].token_ids[: answers[n].score_index] for n in whole}
    again = [question_with_trace(text, world_items[n // 4], DIMENSIONS[n % 4], trace) for n, trace in traces.items()]
    for n, rescored in zip(whole, score(fleet.workers, again, 120, "scores"), strict=True):
        np.testing.assert_allclose(rescored.score_logprobs, answers[n].score_logprobs, atol=2e-5)


def test_a_written_trace_ends_with_the_marker(text, world_items):
    item = world_items[0]
    asked = question_with_trace(text, item, "realism", item.reasoning["realism"])
    plain = text.question(item.prompt, "realism")
    assert asked.token_ids[: len(plain)].tolist() == plain.tolist()
    assert asked.token_ids[-len(text.marker_ids) :].tolist() == list(text.marker_ids)
    assert text.score_index([*asked.token_ids[len(plain) :], text.label_ids[3]]) == len(asked.token_ids) - len(plain)


def test_swapping_changes_the_score_and_rescoring_does_not(fleet, text, world_items):
    found = swap_traces(fleet.workers, text, world_items, batch_items=16, deadline_s=300, resamples=50, seed=0)
    assert found["rescored_max_abs_diff"] < 1e-4
    assert (
        0 < found["pooled"]["pairs"] <= len(widest_pairs(world_items, DIMENSIONS))
        and found["pooled"]["trace_effect"] > 0
    )
    assert sum(d["pairs"] for d in found["dimensions"].values()) == found["pooled"]["pairs"]


def test_widest_pairs(world_items):
    chosen = widest_pairs(world_items, DIMENSIONS)
    keys = [(pair.winner.group, pair.dimension) for pair in chosen]
    assert len(set(keys)) == len(keys)
    for pair in chosen:
        scores = [
            item.scores[pair.dimension]
            for item in world_items
            if item.group == pair.winner.group and pair.dimension in item.scores
        ]
        assert pair.winner_score - pair.loser_score == max(scores) - min(scores)
