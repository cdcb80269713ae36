"""What chaos draws and counts, by hand; a run of it is in tests/jobs/test_chaos_job.py."""

from __future__ import annotations

from collections import Counter

from zr_ray.operate.chaos import Outcome, differing, plan_faults, table
from zr_ray.operate.victims import Held

KINDS = ["rollout"] * 4 + ["learner"] * 4 + ["driver"] * 2


def test_faults_are_drawn_from_the_seed_and_lie_apart():
    plan = plan_faults(KINDS, 3)
    assert plan == plan_faults(KINDS, 3) and plan != plan_faults(KINDS, 4)
    assert Counter(f.kind for f in plan) == Counter(KINDS)
    steps = [f.after_step for f in plan]
    assert steps[0] >= 1 and all(1 <= b - a <= 2 for a, b in zip(steps, steps[1:], strict=False))
    assert all(0 <= f.wait_frac <= 1.5 for f in plan)


def test_a_value_that_differs_in_its_last_bit_is_counted_and_clocks_are_not():
    right = [{"step": 1, "loss/total": 0.5, "time/step_s": 1.0, "rollout/recovered": 0.0}]
    same = [{"step": 1, "loss/total": 0.5, "time/step_s": 9.0, "rollout/recovered": 1.0}]
    assert differing(same, right) == []
    assert differing([same[0] | {"loss/total": 0.5 + 1e-16 * 2}], right) == [
        f"step 1 loss/total: {0.5 + 2e-16} instead of 0.5"
    ]
    assert len(differing([{"step": 1, "loss/total": 0.5}, {"step": 2, "loss/total": 1.0}], right)) == 2


def test_what_has_come_is_named_and_what_was_there_is_not():
    before = Held({"a": "Old"}, {"g": "x/rollout"}, ("service",), {1: "ray::Old"}, {(1, 80): "ray::Old"})
    after = Held(
        {"a": "Old", "b": "RolloutWorker run/rollout-0"}, {"g": "x/rollout", "h": ""}, ("service", "reward-run"),
        {1: "ray::Old", 2: "ray::RolloutWorker"},
        {(1, 80): "ray::Old", (1, 81): "ray::Old", (2, 90): "ray::RolloutWorker"},
    )  # fmt: skip
    assert after.beside(before) == {
        "actors": ["RolloutWorker run/rollout-0"],
        "placement groups": ["h"],
        "Serve applications": ["reward-run"],
        "processes": ["2 ray::RolloutWorker"],
        "ports": ["90 of ray::RolloutWorker"],
    }
    assert not any(before.beside(before).values())


def test_the_table_shows_every_kind_and_every_counter():
    calm = Outcome("t2i", counters={"images lost": 0}, seconds=10)
    hit = Outcome("t2i", [{"kind": "learner", "recovered_s": s} for s in (3.0, 9.0, 5.0)], 40.0, 0, {"images lost": 2})
    text = table([calm, hit])
    assert "| t2i | diffusion actor | 3 | 5 (9) |" in text
    assert "| counter | t2i, undisturbed | t2i, chaos |" in text and "| images lost | 0 | 2 |" in text
