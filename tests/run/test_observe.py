"""Waits and gauges against a real Ray."""

import threading
import time
import urllib.request

import pytest

from zr_ray.config.gdso import GdsoConfig
from zr_ray.errors import DeadlineError
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import Metrics, wait_for, within


@pytest.fixture
def work(ray_cluster):
    import ray

    @ray.remote(num_cpus=0.1)
    def work(answer, seconds=0.0):
        time.sleep(seconds)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return work


def test_values_in_the_order_asked_for(work):
    slow, fast = work.remote("slow", 0.3), work.remote("fast")
    assert wait_for([slow, fast, slow], 30, "two tasks") == ["slow", "fast", "slow"]
    assert wait_for(fast, 30, "one task") == "fast"
    assert wait_for([], 30, "nothing") == []


def test_deadline_names_what_was_waited_for_and_says_so_on_the_way(work, capsys):
    import ray

    refs = [work.remote(1), work.remote(2, 60)]
    wait_for(refs[0], 30, "the first")
    with pytest.raises(DeadlineError, match="rollouts of step 3 did not finish in 1 s: 1 of 2 still pending"):
        wait_for(refs, 1.2, "rollouts of step 3", every_s=0.4)
    assert "waiting for rollouts of step 3: 1 of 2 pending after" in capsys.readouterr().out
    ray.cancel(refs[1], force=True)


def test_the_first_failure_is_raised_while_others_hang(work):
    import ray

    hanging, failing = work.remote(1, 60), work.remote(KeyError("broken"))
    start = time.monotonic()
    with pytest.raises(KeyError, match="broken"):
        wait_for([hanging, failing], 30, "a group")
    assert time.monotonic() - start < 20
    ray.cancel(hanging, force=True)


def test_metrics_reach_the_node_s_prometheus_endpoint(ray_cluster, tmp_path):
    import ray

    run = RunFolder.create(tmp_path, "seen", GdsoConfig())
    sink = Metrics(run)
    sink.log(4, {"sync/max_abs_diff": 0.125, "reward/total": float("nan")})
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        found = [line for line in text.splitlines() if line.startswith("ray_zr_sync_max_abs_diff{")]
        lines = [line for line in found if 'run_id="seen"' in line]  # other tests of this process have gauges too
        if lines:
            break
        time.sleep(1)
    assert lines and lines[0].endswith(" 0.125")
    assert sink._refresher.is_alive(), "a step may take longer than Ray remembers a gauge"
    sink.close()
    sink._refresher.join(30)
    assert not sink._refresher.is_alive()


def test_values_within_a_deadline_come_unchanged_and_their_error_too():
    def values():
        yield 1
        yield 2
        raise KeyError("three")

    got = within(values(), 5.0, "the next value", "wait longer")
    assert [next(got), next(got)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(got)


def test_a_value_that_does_not_come_is_named_with_the_remedy():
    def values():
        yield 1
        time.sleep(1.0)
        yield 2

    got = within(values(), 0.2, "the next value", "wait longer")
    assert next(got) == 1
    with pytest.raises(DeadlineError, match="the next value did not come in 0 s; wait longer"):
        next(got)


def test_who_stops_early_stops_the_values():
    closed = threading.Event()

    def values():
        try:
            yield from range(1, 10**9)
        finally:
            closed.set()

    got = within(values(), 5.0, "the next value", "wait longer")
    assert next(got) == 1
    got.close()
    assert closed.wait(5.0)
