"""What trackers hold of a run, read back from their own files with their own libraries."""

import json
import os
import struct

from zr_ray.run.folder import RunFolder


def written(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl as name -> points."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in run.read_metrics():
        for name, value in line.items():
            if name != "step" and value is not None:
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def wandb_records(run: RunFolder) -> list:
    """All records of the run's offline files in the order of writing: LevelDB's log format (header of 7 bytes; blocks
    of 32 KiB; of each piece checksum, length and type), each record one protobuf message of W&B's own schema."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(run.path.glob("wandb/offline-run-*/run-*.wandb")):
        content, at, pieces = path.read_bytes(), 7, b""
        assert content[:4] == b":W&B", content[:8]
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, at)
            pieces += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                found.append(Record.FromString(pieces))
                pieces = b""
    return found


def wandb_curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") != "history":
            continue
        shown = {"table", "report"}  # tables and pages are rows of the history too
        row = {item.key: json.loads(item.value_json) for item in record.history.item if item.key}
        row |= {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item if not item.key
                and item.nested_key[0] not in shown}  # fmt: skip
        for name, value in row.items():
            if "step" in row and name != "step" and not name.startswith("_"):
                curves.setdefault(name, []).append((row["step"], value))
    return curves


def mlflow_client(run: RunFolder):
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # what a job sets where it writes
    return MlflowClient((run.path.parent / "mlruns").as_uri())


def mlflow_run(run: RunFolder):
    client = mlflow_client(run)
    experiment = client.get_experiment_by_name("zr_ray").experiment_id
    (found,) = (r for r in client.search_runs([experiment]) if r.info.run_name == run.run_id)
    return found


def mlflow_curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    client, found = mlflow_client(run), mlflow_run(run)
    points = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    return {name: [(point.step, point.value) for point in history] for name, history in points.items()}


def tensorboard_curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard)).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
