"""A judge whose outputs reach no score is shown, advised, not trained on, and stopped."""

import numpy as np
import pytest

from zr_ray.errors import RolloutError
from zr_ray.loops.unscored import UnscoredSteps, unscored_advice
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import Judgement


class Journal:
    """What a run's journal keeps, in memory."""

    def __init__(self):
        self.lines, self.result = [], None

    def say(self, line):
        self.lines.append(line)

    def kept(self):
        return "there is no checkpoint yet: start a new run"

    def finish(self, job, found):
        self.result = found


@pytest.fixture(scope="module")
def text(judge_path):
    return JudgeText(judge_path)


def judgement(text, words, key="a/realism"):
    tokens = np.asarray(text.tokenizer.encode(words, add_special_tokens=False), np.int32)
    return Judgement(key, 0, tokens, np.zeros(len(tokens), np.float32), None, None, 0)


def test_two_outputs_are_shown_and_the_advice_follows_from_what_they_look_like(text):
    short = [judgement(text, "small red circle"), judgement(text, "large", "b/realism"), judgement(text, "blue")]
    lines = unscored_advice(short, text, 32)
    assert len(lines) == 3 and "a/realism, 3 tokens: 'small red circle'" in lines[0] and "b/realism" in lines[1]
    assert f"without '{text.format.marker}5'" in lines[2].replace("score 5", "score5") and "jobs/sft.py" in lines[2]
    cut = unscored_advice(short, text, 3)  # one of three at the limit: not most of them
    assert "jobs/sft.py" in cut[2]
    cut = unscored_advice(short[:1], text, 3)
    assert "1 of 1 outputs were cut at rollout.max_new_tokens=3: raise it" in cut[-1]


def test_the_run_stops_as_failed_after_so_many_steps_in_a_row(text):
    journal = Journal()
    steps = UnscoredSteps(journal, text, 32, allowed=2)
    nothing = [[judgement(text, "small red circle")]]
    assert not steps.check(1, 0.0, 8.0, nothing)
    assert journal.lines[0] == "step 1: none of 8 outputs has a score, nothing is trained on" and journal.result is None
    assert steps.check(2, 3.0, 8.0, nothing)  # a scored step in between: counted anew
    assert not steps.check(3, 0.0, 8.0, nothing)
    with pytest.raises(RolloutError, match=r"step 4: no output had a score in 2 steps in a row; .*no checkpoint yet"):
        steps.check(4, 0.0, 8.0, nothing)
    assert journal.result["status"] == "FAILED" and "2 steps in a row" in journal.result["problem"]
