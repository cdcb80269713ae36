"""What is left of dead runs is found; what lives, and what is not ours, is left alone."""

from __future__ import annotations

from zr_ray.operate.gc import leftovers


def actor(name: str, job: str, detached: bool = False) -> dict:
    return {"name": name, "job_id": job, "is_detached": detached}


def names(found) -> list[tuple[str, str]]:
    return [(leftover.kind, leftover.name) for leftover in found]


LIVING = [actor("reward-a/lease", "01"), actor("reward-a/keeper", "01", detached=True)]


def test_a_living_service_stays():
    assert leftovers(["reward-a"], LIVING, [], {"01"}) == []


def test_a_service_whose_lease_is_gone_goes_with_its_keeper():
    left = [actor("reward-a/keeper", "01", detached=True)]
    assert names(leftovers(["reward-a"], left, [], set())) == [
        ("application", "reward-a"),
        ("actor", "reward-a/keeper"),
    ]


def test_a_keeper_without_its_service_goes():
    left = [actor("reward-a/keeper", "01", detached=True)]
    assert names(leftovers([], left, [], set())) == [("actor", "reward-a/keeper")]


def test_a_service_that_lost_both_goes_and_a_foreign_application_stays():
    assert names(leftovers(["reward-a", "shop"], [], [], set())) == [("application", "reward-a")]


def test_groups_of_dead_jobs_go():
    groups = [
        {"name": "gdso-1/rollout", "id": "aa", "creator_job_id": "01"},
        {"name": "gdso-2/rollout", "id": "bb", "creator_job_id": "02"},
        {"name": "", "id": "cc", "creator_job_id": "01"},
        {"name": "gdso-3/rollout", "id": "dd", "creator_job_id": ""},
    ]
    assert names(leftovers([], [], groups, {"02"})) == [("placement group", "gdso-1/rollout")]
