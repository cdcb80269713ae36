"""Checkpoints: complete or not there, whenever the process dies; nothing but tensors reaches DeepSpeed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zr_ray.errors import CheckpointError
from zr_ray.run import checkpoints
from zr_ray.run.checkpoints import (
    MANIFEST,
    begin_checkpoint,
    finish_checkpoint,
    gate_deepspeed_files,
    latest_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)


def fill(step: int, size: int = 1000):
    """A checkpoint whose every byte follows from its step."""

    def write(folder: Path) -> None:
        (folder / "rank_0").mkdir()
        (folder / "rank_0" / "optim.bin").write_bytes(bytes([step % 251]) * size)
        (folder / "state.json").write_text(json.dumps({"step": step}))

    return write


def assert_whole(step: int, path: Path, size: int = 1000) -> None:
    assert json.loads((path / "state.json").read_text()) == {"step": step}
    assert (path / "rank_0" / "optim.bin").read_bytes() == bytes([step % 251]) * size


def test_write_keeps_the_newest_and_verifies(tmp_path):
    assert latest_checkpoint(tmp_path / "not yet") is None
    for step in (10, 20, 30):
        assert write_checkpoint(tmp_path, step, fill(step), keep=2) == tmp_path / f"step_{step:06d}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000020", "step_000030"]
    step, path = latest_checkpoint(tmp_path)
    assert step == 30
    assert_whole(30, path)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 30 and set(manifest["files"]) == {"rank_0/optim.bin", "state.json"}
    assert manifest["files"]["rank_0/optim.bin"]["bytes"] == 1000


def test_steps_are_ordered_as_numbers(tmp_path):
    write_checkpoint(tmp_path, 999_999, fill(1), keep=5)
    write_checkpoint(tmp_path, 1_000_000, fill(2), keep=5)
    assert latest_checkpoint(tmp_path)[0] == 1_000_000


def _truncate(path):
    (path / "rank_0" / "optim.bin").write_bytes(b"short")


def _flip_a_bit(path):
    data = bytearray((path / "rank_0" / "optim.bin").read_bytes())
    data[500] ^= 1
    (path / "rank_0" / "optim.bin").write_bytes(data)


@pytest.mark.parametrize(
    "damage, said",
    [
        (_truncate, "optim.bin is not what was saved"),
        (_flip_a_bit, "optim.bin is not what was saved"),
        (lambda path: (path / "state.json").unlink(), "missing files ['state.json']"),
        (lambda path: (path / "extra.pt").write_bytes(b""), "do not belong to it ['extra.pt']"),
        (lambda path: (path / MANIFEST).unlink(), "was never finished"),
        (lambda path: (path / MANIFEST).write_text('{"step": 2'), "is damaged"),
        (lambda path: (path / MANIFEST).write_text("[]"), "is damaged"),
        (lambda path: (path / "link").symlink_to("state.json"), "plain files"),
    ],
)
def test_damage_is_named_and_the_previous_checkpoint_is_used(tmp_path, capsys, damage, said):
    write_checkpoint(tmp_path, 1, fill(1), keep=2)
    newest = write_checkpoint(tmp_path, 2, fill(2), keep=2)
    damage(newest)
    with pytest.raises(CheckpointError, match="step_000002") as refused:
        verify_checkpoint(newest)
    assert said in str(refused.value)
    assert latest_checkpoint(tmp_path) == (1, tmp_path / "step_000001")
    assert "checkpoint passed over" in capsys.readouterr().out


def test_a_renamed_checkpoint_is_refused(tmp_path):
    path = write_checkpoint(tmp_path, 1, fill(1), keep=1)
    with pytest.raises(CheckpointError, match="of step 1"):
        verify_checkpoint(path.rename(tmp_path / "step_000007"))


def test_an_abandoned_future_goes_when_the_past_is_written_again(tmp_path):
    """Resumed at 20 because 40 was damaged: writing 30 must make 30 the newest, and 40 can be written over."""
    for step in (20, 40):
        write_checkpoint(tmp_path, step, fill(step), keep=3)
    (tmp_path / "step_000040" / "state.json").unlink()
    write_checkpoint(tmp_path, 30, fill(30), keep=3)
    assert latest_checkpoint(tmp_path)[0] == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000020", "step_000030"]
    write_checkpoint(tmp_path, 30, fill(31), keep=3)
    assert_whole(31, tmp_path / "step_000030")


def test_a_failed_fill_leaves_the_old_one_and_the_next_write_cleans_up(tmp_path):
    write_checkpoint(tmp_path, 1, fill(1), keep=1)

    def disk_full(folder):
        fill(2)(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, 2, disk_full, keep=1)
    assert latest_checkpoint(tmp_path)[0] == 1
    write_checkpoint(tmp_path, 3, fill(3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]


def test_two_halves_for_several_ranks(tmp_path):
    temporary = begin_checkpoint(tmp_path, 5)
    for rank in range(2):
        (temporary / f"rank_{rank}.bin").write_bytes(bytes([rank]))
    assert latest_checkpoint(tmp_path) is None
    final = finish_checkpoint(temporary, keep=1)
    verify_checkpoint(final)
    assert {path.name for path in final.iterdir()} == {"rank_0.bin", "rank_1.bin", MANIFEST}
    with pytest.raises(CheckpointError, match="empty"):
        finish_checkpoint(begin_checkpoint(tmp_path, 6), keep=1)


def test_killed_at_every_system_call_that_matters(tmp_path):
    """SIGKILL at the n-th fsync, rename, open or removal, for every n: the newest checkpoint is whole, old or new,
    never older."""
    calls = ("fsync", "rename", "open", "mkdir", "rmdir", "unlink")
    for n in range(1, 200):
        parent = tmp_path / str(n)
        write_checkpoint(parent, 1, fill(1), keep=1)
        child = os.fork()
        if child == 0:
            try:
                _die_at_call(n, calls)
                write_checkpoint(parent, 2, fill(2), keep=1)
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        step, path = latest_checkpoint(parent)
        assert_whole(step, path)
        if not os.WIFSIGNALED(status):
            assert step == 2
            break
        write_checkpoint(parent, 3, fill(3), keep=1)
        assert [path.name for path in parent.iterdir()] == ["step_000003"], "the next write cleans up"
    assert n > 15, "the write makes that many calls; fewer means that the faults were not injected"


def _die_at_call(n: int, names: tuple[str, ...]) -> None:
    count = 0

    def counting(call):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in names:
        setattr(os, name, counting(getattr(os, name)))


WRITER = """
import sys
from pathlib import Path
from zr_ray.run.checkpoints import write_checkpoint
sys.path.insert(0, sys.argv[2])
from test_checkpoints import fill
step = int(sys.argv[3])
while True:
    step += 1
    write_checkpoint(Path(sys.argv[1]), step, fill(step, 3_000_000), keep=2)
    print(step, flush=True)
"""


def test_killed_at_random_moments(tmp_path):
    """A writer without pause, killed at arbitrary times: what it had announced is never lost, what is found is
    whole."""
    done = 0
    for pause_s in (0.003, 0.021, 0.047, 0.082):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent), str(done)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline().strip() == str(done + 1)
        time.sleep(pause_s)
        writer.kill()
        announced = [int(line) for line in writer.stdout.read().split()] or [done + 1]
        writer.wait()
        step, path = latest_checkpoint(tmp_path)
        assert announced[-1] <= step <= announced[-1] + 1
        assert_whole(step, path, 3_000_000)
        done = step
    assert len(list(tmp_path.glob("step_*"))) <= 3, "a kill between rename and removal may leave one more than keep"


def test_gate_lets_deepspeed_files_pass_and_refuses_code(tmp_path):
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    state = {
        "module": {"w": torch.ones(3)},
        "stage": ZeroStageEnum.gradients,
        "scaler": LossScaler(1),
        "step": 3,
        "name": "gdso",
    }
    (tmp_path / "tag").mkdir()
    torch.save(state, tmp_path / "tag" / "zero_pp_rank_0_optim_states.pt")
    assert gate_deepspeed_files(tmp_path) == 1

    class Attack:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    for number, save in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value)))):
        bad = tmp_path / "tag" / f"bad{number}.pt"
        save({"module": Attack()}, bad)
        with pytest.raises(CheckpointError, match=f"bad{number}.pt is refused"):
            gate_deepspeed_files(tmp_path)
        bad.unlink()
    assert not (tmp_path / "executed").exists()

    torch.save({"path": Path("x")}, tmp_path / "tag" / "foreign.pt")
    torch.serialization.add_safe_globals([type(Path("x"))])
    try:
        with pytest.raises(CheckpointError, match="foreign.pt is refused"):
            gate_deepspeed_files(tmp_path)
        assert type(Path("x")) in torch.serialization.get_safe_globals(), "other libraries' settings are put back"
    finally:
        torch.serialization.clear_safe_globals()
    with pytest.raises(CheckpointError, match="no DeepSpeed checkpoint"):
        gate_deepspeed_files(tmp_path / "nowhere")


def test_manifest_is_durable_before_the_name_is_given(tmp_path, monkeypatch):
    """The order of the calls is the guarantee: all fsyncs of content, then rename, then the parent's fsync."""
    order = []
    paths = {}

    def spy(name, call):
        def wrapped(first, *args):
            order.append(
                (
                    name,
                    paths.get(first) or os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first),
                )
            )
            return call(first, *args)

        return wrapped

    monkeypatch.setattr(checkpoints.os, "fsync", spy("fsync", os.fsync))
    monkeypatch.setattr(checkpoints.os, "rename", spy("rename", os.rename))
    write_checkpoint(tmp_path, 1, fill(1), keep=1)
    names = [(call, Path(path).name) for call, path in order]
    renamed = names.index(("rename", "tmp_step_000001"))
    synced = {name for call, name in names[:renamed]}
    assert synced == {"optim.bin", "state.json", MANIFEST, "rank_0", "tmp_step_000001"}
    assert names[renamed - 1 :] == [
        ("fsync", "tmp_step_000001"),
        ("rename", "tmp_step_000001"),
        ("fsync", tmp_path.name),
    ]
