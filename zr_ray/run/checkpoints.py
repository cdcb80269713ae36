"""Checkpoints that are either complete or not there, whenever the process dies.

    parent/tmp_step_000040/...         being written
    parent/step_000040/<files>         complete
                       manifest.json   {"step": 40, "files": {"<relative path>": {"bytes": n, "sha256": "..."}}}

Order of one write: fill the temporary folder, fsync every file and folder, hash them into the manifest, fsync it,
rename, fsync the parent; only then are older checkpoints removed (renamed first, so that no half-removed folder bears a
checkpoint's name). One writer per parent folder. What is inside a checkpoint is its owner's business.
Left out on purpose: asynchronous and incremental writing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zr_ray.errors import CheckpointError
from zr_ray.run.observe import say

MANIFEST = "manifest.json"
_TEMPORARY = "tmp_"
_STEP_FOLDER = re.compile(r"step_(\d{6,})")
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def write_checkpoint(parent: Path, step: int, fill: Callable[[Path], None], keep: int) -> Path:
    """Let `fill` write into a temporary folder and make it the checkpoint of `step`; keep the newest `keep`. Returns
    its folder."""
    temporary = begin_checkpoint(parent, step)
    fill(temporary)
    return finish_checkpoint(temporary, keep)


def temporary_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint of `step` is being written; the same on every rank."""
    return Path(parent) / f"{_TEMPORARY}step_{step:06d}"


def begin_checkpoint(parent: Path, step: int) -> Path:
    """First half, on rank 0: remove what dead writers left, make the temporary folder that all ranks write into (and
    close their files)."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    # one writer per folder, so whatever bears a temporary name is of a writer that died
    for stale in parent.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    temporary = temporary_folder(parent, step)
    temporary.mkdir()
    return temporary


def finish_checkpoint(temporary: Path, keep: int) -> Path:
    """Second half, on rank 0 after every rank has written: make it durable, name it, prune. Returns the final folder.

    Checkpoints of later steps are removed as well: they were refused as corrupt, or belong to an abandoned future.
    Raises: CheckpointError when nothing, or something else than files and folders, was written.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    final = temporary.with_name(temporary.name.removeprefix(_TEMPORARY))
    step = _step_of(final)
    names = sorted(_files(temporary))
    if not names:
        raise CheckpointError(f"checkpoint of step {step} is empty: nothing was written into {temporary}")
    with ThreadPoolExecutor(4) as pool:  # hashing and fsync release the interpreter lock
        entries = dict(zip(names, pool.map(lambda name: _digest(temporary / name, sync=True), names), strict=True))
    with open(temporary / MANIFEST, "w") as file:
        json.dump({"step": step, "files": entries}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    # a file is durable only when the folder that names it is
    for folder in [*(path for path in temporary.rglob("*") if path.is_dir()), temporary]:
        _sync_folder(folder)
    if final.exists():  # a folder cannot be renamed onto a full one
        _remove(final)
    os.rename(temporary, final)  # the moment from which the checkpoint exists
    _sync_folder(final.parent)
    # only now: until the new one has its name, the old ones are all there is
    earlier = [path for other, path in _steps(final.parent) if other < step]
    later = [path for other, path in _steps(final.parent) if other > step]
    for path in [*later, *earlier[keep - 1 :]]:
        _remove(path)
    return final


def latest_checkpoint(parent: Path) -> tuple[int, Path] | None:
    """Newest checkpoint that verifies, as (step, folder); None when there is none. Says why it passes over a newer
    one."""
    for step, path in _steps(Path(parent)):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            say(f"checkpoint passed over: {error}")
        else:
            return step, path
    return None


def newest_step(run_path: Path) -> int:
    """Step of the newest checkpoint of a run folder by its name alone, nothing is verified; 0 if there is none."""
    return max((step for step, _ in _steps(Path(run_path) / "checkpoints")), default=0)


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest. Raises CheckpointError naming the first file that is missing, foreign or
    changed."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files, step = manifest["files"], manifest["step"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {MANIFEST}: it was never finished; use an earlier checkpoint") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged ({error}); use an earlier checkpoint") from None
    if step != _step_of(path):  # copied or renamed by hand; the loop would go on from a wrong step
        raise CheckpointError(f"{path} holds the checkpoint of step {step}; give the folder its own name back")
    # names before contents: a missing shard is said as such, before anything is hashed
    present = set(_files(path)) - {MANIFEST}
    if present != set(files):
        missing, foreign = sorted(set(files) - present), sorted(present - set(files))
        raise CheckpointError(
            f"{path}: missing files {missing}, files that do not belong to it {foreign}; use an earlier checkpoint"
        )
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(files, pool.map(lambda name: _digest(path / name), files), strict=True):
            if found != files[name]:
                raise CheckpointError(
                    f"{path / name} is not what was saved: wanted {files[name]}, got {found}; use an earlier one"
                )


def gate_deepspeed_files(path: Path) -> int:
    """Refuse pickles that could run code, before DeepSpeed (which loads everything unrestricted) sees the folder.

    Every .pt, .pth, .bin, .pkl, .ckpt below `path` must load with torch's weights_only reader and three harmless
    DeepSpeed classes.
    Returns: the number of files checked. Raises: CheckpointError naming the file and what it asked for.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    files = sorted(file for file in Path(path).rglob("*") if file.suffix in _PICKLE_SUFFIXES)
    if not files:
        raise CheckpointError(f"{path} holds no DeepSpeed checkpoint: no file ends in {', '.join(_PICKLE_SUFFIXES)}")
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # what other libraries allowed for their own files is not allowed here
    try:
        with torch.serialization.safe_globals([ZeroStageEnum, LossScaler, fragment_address]):
            for file in files:
                try:
                    torch.load(file, map_location="meta", weights_only=True)  # meta: the names count, not the tensors
                except Exception as error:  # any failure to read is a refusal
                    reason = " ".join(str(error).split())[:300]
                    raise CheckpointError(
                        f"{file} is refused, it is damaged or holds more than tensors and plain values: {reason}"
                    ) from None
    finally:
        torch.serialization.add_safe_globals(allowed)  # the list is process-wide
    return len(files)


def _step_of(path: Path) -> int:
    match = _STEP_FOLDER.fullmatch(path.name)
    if not match:
        raise CheckpointError(f"a checkpoint folder must be called step_ and at least six digits, got {path.name}")
    return int(match[1])


def _steps(parent: Path) -> list[tuple[int, Path]]:
    """(step, folder), newest first."""
    found = [
        (_step_of(path), path) for path in parent.glob("step_*") if _STEP_FOLDER.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(found, reverse=True)


def _files(folder: Path) -> Iterator[str]:
    """Relative names of all regular files below."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"a checkpoint holds plain files and folders only, got {path}")
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _digest(path: Path, sync: bool = False) -> dict:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # renamed first: a crash inside rmtree must not leave half a checkpoint under a checkpoint's name
    doomed = path.with_name(f"{_TEMPORARY}removed_{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)
