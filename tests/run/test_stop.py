"""A stop request is heard once, acted on within its time, and forgotten at the next start. Signals of this process."""

from __future__ import annotations

import os
import signal
import time

import pytest

from zr_ray.run import stop


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_without_time_for_a_step_the_run_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv(stop.WAIT_VARIABLE, raising=False)
    assert stop.grace_s() == 0
    with pytest.raises(KeyboardInterrupt), stop.checkpoint_first(tmp_path):
        term()
        time.sleep(5)
    assert not stop.is_requested(tmp_path)


def test_the_first_signal_asks_the_second_ends(tmp_path, monkeypatch):
    monkeypatch.setenv(stop.WAIT_VARIABLE, "60")
    before = signal.getsignal(signal.SIGTERM)
    with stop.checkpoint_first(tmp_path):
        term()
        time.sleep(0.05)
    assert stop.is_requested(tmp_path) and signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "no alarm goes off after the block"
    with pytest.raises(KeyboardInterrupt), stop.checkpoint_first(tmp_path):
        term()
        time.sleep(5)
    stop.forget(tmp_path)
    assert not stop.is_requested(tmp_path)


def test_learners_that_do_not_end_in_time_are_left(tmp_path, monkeypatch):
    monkeypatch.setenv(stop.WAIT_VARIABLE, str(stop.LEAVE_S + 0.3))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stop.checkpoint_first(tmp_path):
        term()
        while time.monotonic() - started < 20:
            time.sleep(0.1)
    assert 0.2 < time.monotonic() - started < 10
