"""Where a run's values go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, by one interface and under the
same names.

Every tracker keeps one run through all attempts of ours: its id is the run folder's, or stands in trackers.json. A
resumed run repeats the steps after its checkpoint. TensorBoard's files are purged of them, W&B's offline file is made
anew; W&B online and MLflow take nothing back, so steps that they have are not sent again, but for what a kill kept from
MLflow of the last one. A tracker that joins at a resume gets the steps before it as well.
A tracker that fails while the run goes on is named in the job log and dropped: metrics.jsonl is complete without it.
Left out on purpose: system metrics, code and model uploads; W&B and MLflow offer them in their own settings.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from zr_ray.config.sections import TrackedRunSection
from zr_ray.data.files import write_whole
from zr_ray.errors import ConfigError
from zr_ray.run.console import write as say
from zr_ray.run.folder import CONFIG_FILE, RunFolder

IDS_FILE = "trackers.json"
"""In the run folder: tracker -> what names its run beside our own id."""
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Tracker -> module that it needs; its extra in pyproject.toml has the tracker's name."""
Cell = str | float | None
Ending = Literal["FINISHED", "FAILED"]


class Tracker(Protocol):
    """One run in one tracker. Several processes may open it one after the other, never at once."""

    name: str
    joins: bool
    """Whether it holds nothing of this run yet."""
    takes_back: bool
    """Whether it drops the steps after the one that a resumed run goes on from."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite values of one step, each under its name in metrics.jsonl."""

    def lacking(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        """Those of a step's values that a kill kept from it; none where it cannot tell, or takes steps back."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table that can be looked at in the tracker."""

    def file(self, path: Path, kind: str) -> None:
        """A copy of a file, `kind` says what it is ("report"). Trackers without files leave it."""

    def close(self, status: Ending | None) -> None:
        """Everything is on disk or sent. status: how the run ended; None if another process goes on with it."""


def check_trackers(settings: TrackedRunSection) -> None:
    """Refuse a tracker that cannot work, before Ray is asked for anything.   Raises: ConfigError naming the extra to
    install, or what an online tracker lacks."""
    for name in settings.trackers:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ConfigError(
                f"run.trackers asks for {name}, which is not installed; pip install 'zr_ray[{name}]' on every node, or"
                " leave it out"
            )
    if settings.trackers_offline:
        return
    if "wandb" in settings.trackers and not _wandb_key():
        raise ConfigError(
            "run.trackers_offline=false needs a W&B key, found none; set WANDB_API_KEY (on the learners' node as well),"
            " run `wandb login`, or keep run.trackers_offline"
        )
    if "mlflow" in settings.trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "run.trackers_offline=false needs the address of an MLflow server, found none; set MLFLOW_TRACKING_URI (on"
            " the learners' node as well), or keep run.trackers_offline"
        )


def _wandb_key() -> bool:
    from requests.utils import get_netrc_auth

    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(address))


class Trackers:
    """The run's trackers as one."""

    def __init__(
        self,
        run: RunFolder,
        settings: TrackedRunSection,
        say: Callable[[str], None] = say,
        resumed_after_step: int | None = None,
    ) -> None:
        """Opens them; metrics.jsonl is still as the last attempt left it.   say: one line of the job log.
        Raises: ConfigError if one of them cannot be opened."""
        self._say = say
        self._open: list[Tracker] = []
        self._sent: dict[str, int] = {}  # tracker -> last step that it has
        history = run.read_metrics()
        for name in settings.trackers:
            kept = [line for line in history if resumed_after_step is None or line["step"] <= resumed_after_step]
            try:
                tracker = _OPEN[name](run, settings, resumed_after_step)
                for line in kept if tracker.joins else ():
                    tracker.log(line["step"], {k: v for k, v in line.items() if k != "step" and v is not None})
            except Exception as error:
                raise ConfigError(
                    f"run.trackers: {name} cannot be opened: {_line(error)}; leave it out, or correct its settings"
                ) from error
            self._open.append(tracker)
            has = kept if tracker.joins or tracker.takes_back else history
            self._sent[name] = has[-1]["step"] if has else -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step's values; those that are not finite are left out."""
        finite = _finite(values)

        def send(tracker: Tracker) -> None:
            sent = self._sent[tracker.name]
            if step > sent:
                tracker.log(step, finite)
            elif step == sent and (lacking := tracker.lacking(step, finite)):
                tracker.log(step, lacking)

        self._each(send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """See `Tracker.table`."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def file(self, path: Path, kind: str) -> None:
        """See `Tracker.file`."""
        self._each(lambda tracker: tracker.file(path, kind))

    def close(self, status: Ending | None = None) -> None:
        """See `Tracker.close`."""
        self._each(lambda tracker: tracker.close(status))
        self._open = []

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._open):
            try:
                act(tracker)
            except Exception as error:
                self._open.remove(tracker)
                self._say(
                    f"warning: {tracker.name} gets nothing more of this run: {_line(error)}; metrics.jsonl is complete"
                )


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    name = "tensorboard"
    takes_back = True

    def __init__(self, run: RunFolder, settings: TrackedRunSection, after_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.joins = not any(run.tensorboard.iterdir())
        purge = None if after_step is None else after_step + 1
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=purge, flush_secs=30)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def lacking(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        return {}

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        lines = [list(columns), ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
        self._writer.add_text(name, "\n".join("| " + " | ".join(line) + " |" for line in lines))

    def file(self, path: Path, kind: str) -> None:
        """Cards are shown as text; there is no place for other files, and they lie beside the event files anyway."""
        if path.suffix == ".md":
            self._writer.add_text(kind, path.read_text())

    def close(self, status: Ending | None) -> None:
        self._writer.close()


class Wandb:
    """Offline: `wandb/offline-run-*` in the run folder, under our run id, for `wandb sync`. A killed process takes what
    W&B had not written yet with it, so a resumed run replaces the file by one with all its steps."""

    name = "wandb"
    takes_back = False

    def __init__(self, run: RunFolder, settings: TrackedRunSection, after_step: int | None) -> None:
        import wandb

        offline = settings.trackers_offline
        self._folder, self.joins = run, offline or self.name not in _ids(run)
        for old in (run.path / "wandb").glob("offline-run-*") if offline else ():
            shutil.rmtree(old)
        self._run = wandb.init(
            project=settings.tracker_project,
            id=run.run_id,
            name=run.run_id,
            dir=str(run.path),
            mode="offline" if offline else "online",
            resume="allow",
            config=_flat(run),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")  # W&B counts calls, tables included; we count steps
        _keep_id(run, self.name, {"id": self._run.id})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def lacking(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        return {}

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def file(self, path: Path, kind: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._folder.run_id}-{kind}", type=kind)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        if path.suffix == ".html":
            self._run.log({kind: wandb.Html(str(path), inject=False)})

    def close(self, status: Ending | None) -> None:
        import wandb

        self._run.finish(exit_code=1 if status == "FAILED" else 0)
        wandb.teardown()  # waits for its writer: `finish` alone returns before an offline file is whole


class Mlflow:
    """Offline: a file store, `mlruns` beside the run folders, so that `mlflow ui` shows all runs of a root."""

    name = "mlflow"
    takes_back = False

    def __init__(self, run: RunFolder, settings: TrackedRunSection, after_step: int | None) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else 3.17 refuses a store without a database
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 would hold a training step for four minutes
        from mlflow.tracking import MlflowClient

        uri = (run.path.parent / "mlruns").as_uri() if settings.trackers_offline else os.environ["MLFLOW_TRACKING_URI"]
        self._client = MlflowClient(uri)
        known = _ids(run).get(self.name)
        self.joins = known is None or known["uri"] != uri
        if self.joins:
            made = self._client.create_run(self._experiment(settings.tracker_project), run_name=run.run_id)
            known = {"uri": uri, "run_id": made.info.run_id}
            _keep_id(run, self.name, known)
            parameters = self._parameters(_flat(run))
            for first in range(0, len(parameters), 100):  # MLflow's limit of one call
                self._client.log_batch(known["run_id"], params=parameters[first : first + 100])
        self._id: str = known["run_id"]
        self._client.update_run(self._id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._client.create_experiment(name)

    @staticmethod
    def _parameters(values: Mapping[str, Any]) -> list[Any]:
        from mlflow.entities import Param

        return [Param(name, str(value)[:500]) for name, value in values.items()]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def lacking(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        past = self._client.get_metric_history
        return {n: v for n, v in values.items() if all(metric.step != step for metric in past(self._id, n))}

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        split = {"columns": list(columns), "data": [list(row) for row in rows]}  # the form that MLflow shows as a table
        self._client.log_dict(self._id, split, f"{name}.json")

    def file(self, path: Path, kind: str) -> None:
        self._client.log_artifact(self._id, str(path), None if path.stem == kind else kind)

    def close(self, status: Ending | None) -> None:
        if status is not None:
            self._client.set_terminated(self._id, status)


_OPEN: dict[str, Callable[[RunFolder, TrackedRunSection, int | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def _ids(run: RunFolder) -> dict[str, dict]:
    path = run.path / IDS_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _keep_id(run: RunFolder, name: str, value: dict) -> None:
    write_whole(run.path / IDS_FILE, json.dumps(_ids(run) | {name: value}, indent=1).encode())


def _flat(run: RunFolder) -> dict[str, Any]:
    """The resolved configuration as dotted keys."""
    import yaml

    path = run.path / CONFIG_FILE
    tree = yaml.safe_load(path.read_text()) if path.is_file() else {}

    def walk(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {key: value}
        return {k: v for name, inner in value.items() for k, v in walk(inner, f"{key}.{name}" if key else name).items()}

    return walk(tree, "") if tree else {}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _cell(value: Cell) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
