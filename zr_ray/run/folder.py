"""One folder per run, at an absolute path: everything the run was told and everything it found.

    <root>/<id>/config.resolved.yaml   the whole configuration, defaults included
                environment.json       python, packages, hardware, git; one more entry per resume
                inputs.json            hashes of judge and data, compared when the run is resumed
                metrics.jsonl          one line per step: {"step": n, "<metric>": number or null, ...}
                tensorboard/, wandb/   the same values, see trackers.py; trackers.json: ids
                checkpoints/step_*     see checkpoints.py
                judge/                 the trained judge, a Hugging Face folder
                examples/              examples.json and images, see report.py
                result.json            see result.py
                report.html
    <root>/latest -> <id>              the newest run

Every file is replaced atomically, or (metrics.jsonl) appended line by line and flushed to disk.
Left out on purpose: remote object stores; the root must be a mounted folder that all nodes see.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path

from zr_ray.config.loader import dump_yaml
from zr_ray.data.files import write_whole
from zr_ray.errors import CheckpointError, ConfigError
from zr_ray.run.environment import checkout, describe_environment
from zr_ray.run.result import check_result
from zr_ray.run.resume import resumable

CONFIG_FILE = "config.resolved.yaml"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.log"
ROWS_FILE = "rows.json"
LATEST = "latest"
INPUTS_FILE = "inputs.json"
"""Name of what the run reads -> hash of its contents, for `check_inputs`."""


class RunFolder:
    """Paths and atomic writes of one run. Cheap and picklable; several processes may hold one, one of them appends
    metrics."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._last_step: int | None = None

    @classmethod
    def start(cls, config, job: str = "gdso") -> RunFolder:
        """A new folder, or with `run.resume` the one it names. Raises ConfigError, CheckpointError."""
        if config.run.resume is None:
            return cls.create(config.run.root, config.run.name, config, job)
        return cls.open(find_run(config.run.resume, config.run.root), config)

    @staticmethod
    def check(config) -> None:
        """Refuse a `run.resume` that cannot be resumed, before Ray is asked for anything; writes nothing. Raises as
        `start` does."""
        if config.run.resume is not None:
            resumable(find_run(config.run.resume, config.run.root) / CONFIG_FILE, config)

    @classmethod
    def create(cls, root: Path | None, name: str | None, config, job: str = "gdso") -> RunFolder:
        """Make `<root>/<id>`, write configuration and environment, point `latest` at it. Raises ConfigError."""
        root = default_root() if root is None else Path(root)
        run_id = name or f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        run = cls(root / run_id)
        try:
            root.mkdir(parents=True, exist_ok=True)
            run.path.mkdir()
        except FileExistsError:
            raise ConfigError(
                f"run folder {run.path} already exists; choose another run.name, or continue it with"
                f" run.resume={run.path}"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot make run folder {run.path}: {error.strerror}; set run.root to a writable shared folder"
            ) from None
        run.write_text(CONFIG_FILE, dump_yaml(config))
        run.write_json("environment.json", {"started": describe_environment(), "resumed": []})
        _point_latest(root, run_id)
        return run

    @classmethod
    def open(cls, path: Path, config) -> RunFolder:
        """The folder of an earlier run, after checking that it ran under the same configuration.

        Keys of `resume.TAKEN` may differ: the new values are written to the resolved configuration, and with the old
        ones to environment.json. Raises CheckpointError naming the other keys that do.
        """
        run = cls(Path(path).resolve())
        changed = resumable(run.path / CONFIG_FILE, config)
        environment = json.loads((run.path / "environment.json").read_text())
        environment["resumed"].append(describe_environment() | {"changed": changed})
        run.write_json("environment.json", environment)
        run.write_text(CONFIG_FILE, dump_yaml(config))
        _point_latest(run.path.parent, run.path.name)
        return run

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Refuse to go on with another judge or other data than the run began with: contents are compared, not names.

        Args: inputs: name -> hash; those the run did not record are taken. Raises: CheckpointError naming them."""
        path = self.path / INPUTS_FILE
        held = json.loads(path.read_text()) if path.is_file() else {}
        changed = [name for name, found in inputs.items() if held.get(name, found) != found]
        if changed:
            raise CheckpointError(
                f"cannot resume {self.run_id}: the contents of {' and '.join(changed)} are not what the run began with;"
                " put them back, or start a new run"
            )

    @property
    def run_id(self) -> str:
        """Folder name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Parent of step_* folders."""
        return self._folder("checkpoints")

    @property
    def judge(self) -> Path:
        """Where the trained judge goes; not made here, its presence means it is complete."""
        return self.path / "judge"

    @property
    def examples(self) -> Path:
        """examples.json and its images."""
        return self._folder("examples")

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self._folder("tensorboard")

    def append_metrics(self, step: int, values: dict[str, float]) -> None:
        """Add the line of one step and flush it to disk; non-finite values become null.

        Raises: ValueError when the step does not come after the last one written (rewind after a resume).
        """
        if self._last_step is None:
            self.rewind_metrics(2**63)  # nothing but a torn last line is dropped
        if step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} must come after step {self._last_step}, the last one in"
                f" {self.path / METRICS_FILE}"
            )
        line = json.dumps({"step": step} | {name: _finite(float(value)) for name, value in values.items()}) + "\n"
        with open(self.path / METRICS_FILE, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._last_step = step

    def read_metrics(self) -> list[dict]:
        """All complete lines; a line torn by a crash at the end of the file is left out."""
        path = self.path / METRICS_FILE
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of later steps (and a torn last line): a resumed run writes them again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        if (self.path / METRICS_FILE).exists():
            self.write_text(METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))
        self._last_step = kept[-1]["step"] if kept else -1

    def write_result(self, result: dict) -> Path:
        """Check against result.py and write result.json; non-finite numbers become null. Raises ValueError."""
        result = _finite(result)
        check_result(result)
        return self.write_json(RESULT_FILE, result)

    def read_result(self) -> dict:
        """result.json. Raises CheckpointError when the run has none."""
        try:
            return json.loads((self.path / RESULT_FILE).read_text())
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path} has no {RESULT_FILE}: the run did not end; continue it: run.resume={self.path}"
            ) from None

    def write_json(self, name: str, value) -> Path:
        """Atomic JSON file below the run folder; non-finite numbers become null."""
        return self.write_text(name, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Atomic text file below the run folder: after a crash either the old or the new content is there."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
        return path

    def _folder(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder


def default_root() -> Path:
    """`runs` in the checkout of an editable install on this machine, else ZR_RUNS. Raises ConfigError when neither is
    there."""
    if (home := checkout()) is not None:
        return home / "runs"
    if root := os.environ.get("ZR_RUNS"):
        return Path(root).absolute()
    raise ConfigError(
        "no place for the run folder: set run.root (or ZR_RUNS in the environment) to an absolute folder all nodes"
        " share"
    )


def find_run(resume: Path | str, root: Path | None) -> Path:
    """Folder meant by `run.resume`: a path, an id under the root, or `latest`. Raises CheckpointError when there is
    none."""
    if Path(resume).is_absolute():
        return Path(resume)
    root = default_root() if root is None else Path(root)
    path = root / resume
    if not path.is_dir():
        raise CheckpointError(
            f"nothing to resume: {path} does not exist; start without run.resume, or name one of the folders in {root}"
        )
    return path.resolve()


def _point_latest(root: Path, run_id: str) -> None:
    temporary = root / f".{LATEST}.{run_id}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_id)
    os.replace(temporary, root / LATEST)


def _finite(value):
    """A JSON tree: nan and infinities as None, numpy scalars and arrays as Python values, paths as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return str(value) if isinstance(value, Path) else value
