"""The first signal leaves a mark and goes on, the second one interrupts; a run that starts has no mark."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from zr_ray.config.sections import CheckpointSection
from zr_ray.loops.journal import Journal
from zr_ray.run.stopping import stop_asked, stops_after_step


def test_first_signal_asks_second_interrupts(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stops_after_step(tmp_path):
        assert not stop_asked(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_asked(tmp_path) and "saving a checkpoint" in capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_starts_was_not_asked(tmp_path):
    (tmp_path / "stop").touch()
    trained = SimpleNamespace(rank=0, barrier=lambda: None)
    Journal(tmp_path, trained, CheckpointSection(), total_steps=3, started_at=time.time()).restore()
    assert not stop_asked(tmp_path)
