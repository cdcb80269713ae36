"""A guard file that a killed process left does not stop those who come later; one of a living compiler is respected."""

import multiprocessing
import os
import signal
import time

import pytest

from zr_ray.errors import DeadlineError
from zr_ray.workers.operators import GUARD, LOCK, NAME, clear_guard, held, load_collective


def hold(path):
    with held(path):
        path.with_name("ready").touch()
        time.sleep(60)


def test_a_lock_ends_with_its_holder(tmp_path):
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / LOCK,))
    holder.start()
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(DeadlineError, match="TORCH_EXTENSIONS_DIR"), held(tmp_path / LOCK, deadline_s=0.5):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    with held(tmp_path / LOCK, deadline_s=5):
        pass


def test_the_guard_of_a_dead_process_is_removed_and_said(tmp_path, capsys):
    (tmp_path / GUARD).touch()
    (tmp_path / f"{NAME}.so").touch()
    clear_guard(tmp_path)
    assert not (tmp_path / GUARD).exists() and "left" in capsys.readouterr().out


def test_a_guard_without_operator_is_waited_for_until_it_is_old(tmp_path):
    guard = tmp_path / GUARD
    guard.touch()
    started = time.monotonic()
    clear_guard(tmp_path, stale_s=1.0)
    assert not guard.exists() and time.monotonic() - started > 0.4


def test_the_operator_loads_although_a_guard_is_left(monkeypatch):
    from torch.utils.cpp_extension import _get_build_directory

    load_collective()  # compiled by make install, or here
    guard = os.path.join(_get_build_directory(NAME, verbose=False), GUARD)
    open(guard, "w").close()
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    load_collective()
    assert not os.path.exists(guard)
