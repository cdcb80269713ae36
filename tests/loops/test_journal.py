"""A journal of something that is no judge: steps, the clock, the result. Checkpoints are tested in the jobs' own
tests: they report to Ray Train."""

import json
import time

import pytest

from zr_ray.config.sections import CheckpointSection
from zr_ray.errors import NonFiniteError
from zr_ray.loops.journal import Journal


class Counter:
    """Trains nothing; one rank."""

    rank = 0

    def barrier(self):
        pass

    def reduce_max(self, value):
        return value

    def save(self, folder, state):
        pass

    def load(self, folder):
        return {}


@pytest.fixture()
def journal(tmp_path):
    return Journal(tmp_path, Counter(), CheckpointSection(), total_steps=3, started_at=time.time())


def lines(journal):
    return [json.loads(line) for line in (journal.run.path / "metrics.jsonl").read_text().splitlines()]


def test_what_comes_before_the_first_step_is_no_part_of_it(journal):
    start = journal.restore()
    with journal.timer("evaluate"):
        time.sleep(0.6)  # a long evaluation of the untrained model
    for step in journal.steps(start):
        journal.step(step + 1, {"loss/total": 1.0})
    first = lines(journal)[0]
    assert first["time/step_s"] < 0.3 and "time/evaluate_s" not in first
    log = (journal.run.path / "progress.log").read_text().splitlines()
    assert len(log) == 3 and "ETA 0 s" in log[0], log


def test_notes_join_the_next_step_only(journal):
    journal.note({"sync/max_abs_diff": 2.0})
    for step in journal.steps(journal.restore()):
        with journal.timer("rollout"):
            time.sleep(0.01)
        journal.step(step + 1, {}, tokens=10.0)
    found = lines(journal)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert [line.get("sync/max_abs_diff") for line in found] == [2.0, None, None]
    assert 0 < found[0]["time/tokens_per_s"] < 1000


def test_a_result_needs_no_rows(journal):
    journal.restore()
    journal.finish("t2i", {"reward": {"before": 1.0, "after": float("nan")}})
    result = journal.run.read_result()
    assert result["job"] == "t2i" and result["status"] == "SUCCEEDED"
    assert result["reward"] == {"before": 1.0, "after": None}


def test_what_is_not_finite_names_the_step_and_what_is_left(journal):
    from zr_ray.run.checkpoints import write_checkpoint

    def fails_at(step):
        for n in journal.steps(journal.restore()):
            with journal.timer("train"):
                if n + 1 == step:
                    raise NonFiniteError("loss/policy is not finite; lower learner.lr")

    with pytest.raises(NonFiniteError, match=r"step 2, train: loss/policy .*; there is no checkpoint yet"):
        fails_at(2)
    write_checkpoint(journal.run.checkpoints, 1, lambda folder: (folder / "x").write_text("x"), keep=1)
    torn = journal.run.checkpoints / "tmp_step_000002"
    torn.mkdir()
    with pytest.raises(NonFiniteError, match="step 2, .*the checkpoint of step 1 is as it was.*--resume"):
        next_step = journal.steps(1)
        next(next_step)
        with journal.timer("train"):
            raise NonFiniteError("loss/policy is not finite")
