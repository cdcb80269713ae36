"""A job gets room as a whole or holds nothing; one job places itself at a time; waits say who has what and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import ray

from zr_ray.errors import PlacementError
from zr_ray.run.room import groups_of, release_lock, reserve
from zr_ray.run.shortage import bundles_text

pytestmark = pytest.mark.usefixtures("ray_cluster")


def free() -> float:
    """Free CPUs, once Ray has taken note of what was released."""
    seen = [ray.available_resources().get("CPU", 0.0)]
    while len(seen) < 40 and (len(seen) < 4 or len(set(seen[-4:])) > 1):
        time.sleep(0.2)
        seen.append(ray.available_resources().get("CPU", 0.0))
    return seen[-1]


def test_roles_get_their_own_groups_and_all_is_given_back():
    before = free()
    with reserve("one", {"rollout": [{"CPU": 0.5}] * 2, "learner": [{"CPU": 1.0}]}, 60) as room:
        assert sorted(g["name"] for g in groups_of("one")) == ["one/learner", "one/rollout"]
        taken = room.take("rollout")
        room.hand_over("learner")
        assert free() == before - 1.0, "the learner's CPU is free again, for Ray Train"
        assert taken.bundle_specs == [{"CPU": 0.5}] * 2
        ray.util.remove_placement_group(taken)
    assert groups_of("one") == []
    assert free() == before


def test_the_second_job_waits_for_the_first_and_then_gets_its_room(capsys):
    entered, leave, seen = threading.Event(), threading.Event(), {}

    def first():
        with reserve("first", {"rollout": [{"CPU": 1.0}]}, 60):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    with pytest.raises(
        PlacementError, match="second did not get its turn .* first, which has been placing 1 x {CPU: 1}"
    ):
        with reserve("second", {"rollout": [{"CPU": 1.0}]}, 5):
            pass
    assert "waiting for first, which has been placing" in capsys.readouterr().out
    leave.set()
    thread.join(60)
    with reserve("second", {"rollout": [{"CPU": 1.0}]}, 60):
        seen["second"] = True
    assert seen == {"second": True}


def test_a_settled_job_lets_the_next_one_look_and_what_it_holds_is_named(capsys):
    """Seen before: two jobs each hold their rollout CPUs and wait for ever for their learner's."""
    amount = free()
    half = {"rollout": [{"CPU": amount / 2 - 0.25}], "learner": [{"CPU": amount / 2 - 0.25}]}
    with reserve("holder", half, 60) as room:
        room.settled()
        started, before = time.monotonic(), free()
        with pytest.raises(PlacementError) as refused:
            with reserve("late", half, 15):  # a busy machine takes some of it to start the lock
                pass
        assert time.monotonic() - started < 45
        text = str(refused.value)
        assert f"needs CPU {2 * half['learner'][0]['CPU']:g} of {before:g} free" in text
        assert "holder/rollout holds" in text and "holder/learner holds" in text
        assert groups_of("late") == [] and free() == before, "who waits holds nothing"
    assert "waiting for late/all: needs CPU" in capsys.readouterr().out
    with reserve("late", half, 60):
        pass


def test_the_lock_ends_with_its_job(ray_cluster):
    code = (
        "import sys, time, ray; from zr_ray.run.room import reserve\n"
        "ray.init(sys.argv[1], log_to_driver=False)\n"
        "with reserve('killed', {'rollout': [{'CPU': 0.5}]}, 60): print('held', flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen(
        [sys.executable, "-c", code, ray_cluster], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert any("held" in line for line in job.stdout)
        job.send_signal(signal.SIGKILL)
    finally:
        job.kill()
        job.wait(20)
    with reserve("next", {"rollout": [{"CPU": 0.5}]}, 90):
        pass
    assert groups_of("killed") == []


def test_only_the_holder_releases_the_lock():
    with reserve("mine", {"rollout": [{"CPU": 0.5}]}, 60):
        release_lock("other")
        with pytest.raises(PlacementError, match="turn"):
            with reserve("other", {"rollout": [{"CPU": 0.5}]}, 2):
                pass
        release_lock("mine")
        with reserve("other", {"rollout": [{"CPU": 0.5}]}, 60):
            pass


def test_texts():
    assert bundles_text([{"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 1.0, "GPU": 1}]) == "2 x {CPU: 0.5}, 1 x {CPU: 1, GPU: 1}"
