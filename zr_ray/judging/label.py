"""Teacher labeling: a Ray Data pipeline over vLLM actors that reason about every item and average their score
distributions.

    items not labeled yet -> read image files (CPU tasks) -> Labeler actors (one RolloutWorker each) decode and ask
    -> parts of a LabelSet

The driver appends each finished batch as one part, so a part holds whole items and an item is in one part. A Labeler
that dies is restarted by Ray and its batch is made again from the same seeds; a driver that dies loses only what was
not appended, and the next run labels exactly that. Items are seeded by their content: the label does not depend on
order, batch or worker.
Left out on purpose: object stores for images; and verification of the engine (the teacher is loaded from its folder,
nothing is pushed).
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from zr_ray.config.risd import LabelSection
from zr_ray.config.workers import RolloutSection
from zr_ray.data.encoded import encoded_image
from zr_ray.data.images import WHITE, configured_background, decode_image
from zr_ray.data.labels import Label, LabelSet, fingerprints, label_schema
from zr_ray.errors import DataError, RolloutError
from zr_ray.functional.risd import average_distributions
from zr_ray.functional.scores import score_log_distribution
from zr_ray.judging.ask import request_seed
from zr_ray.models.identity import judge_hash, template_hash
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage, AnyImage, Judgement, JudgeRequest
from zr_ray.rubric import Rubric
from zr_ray.run.observe import within
from zr_ray.run.placement import bundle, custom, worker_bundles
from zr_ray.run.travel import portable
from zr_ray.workers.rollout import RolloutWorker, engine_environment

READER_CPUS = 0.25
"""CPU share Ray reserves for one task that reads image files: it waits for the disk most of the time."""
RESTARTS = 3
"""Times Ray restarts a Labeler that died; an engine that dies at every start must end the run."""


def label_provenance(teacher: Path, text: JudgeText, rollout: RolloutSection, section: LabelSection) -> dict:
    """What decides a label, as JSON values: teacher, template and sampling."""
    sampling: dict[str, object] = {
        "traces": section.traces,
        "seed": section.seed,
        "temperature": 1.0 if section.traces else 0.0,
    }
    sampling |= {"max_new_tokens": rollout.max_new_tokens, "dtype": rollout.dtype}
    made = {"format": 1, "teacher": judge_hash(teacher), "template": template_hash(text), "sampling": sampling}
    background = configured_background()
    return made if background == WHITE else made | {"background": list(background)}


def label_items(
    items: Sequence[AnnotatedImage],
    labels: LabelSet,
    teacher: Path,
    rollout: RolloutSection,
    section: LabelSection,
    say: Callable[[str], None] = print,
) -> dict[str, Label]:
    """Every label of the set, after making those that `items` lack. Starts no engine when nothing is missing.

    Raises: ConfigError if another process labels into the set; DeadlineError if no batch is done in time; the engine's
    own error."""
    with labels.locked():
        known = labels.read()
        missing: dict[str, AnnotatedImage] = {}
        for name, item in zip(fingerprints(items), items, strict=True):
            if name not in known:
                missing.setdefault(name, item)
        say(f"teacher labels {labels.folder}: {len(items)} items, {len(missing)} to label")
        if missing:
            _label_missing(missing, labels, teacher, rollout, section, say)
            known = labels.read()
    lost = [item.id for name, item in missing.items() if name not in known]
    if lost:
        raise RolloutError(
            f"the labeling pipeline must answer every item, {len(lost)} are missing (first: {lost[0]}); run again"
        )
    return known


def _label_missing(missing, labels, teacher, rollout, section, say) -> None:
    done = 0
    with closing(_pipeline(missing, teacher, rollout, section)) as tables:
        for table in tables:
            labels.append(table)
            done += len(table)
            say(f"labeled {done} of {len(missing)} items")


def _pipeline(
    missing: dict[str, AnnotatedImage], teacher: Path, rollout: RolloutSection, section: LabelSection
) -> Iterator[pa.Table]:
    """Tables of `label_schema`, one per batch, as they finish."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    rows = [
        {"fingerprint": name, "id": item.id, "prompt": item.prompt, "image": str(item.image)}
        for name, item in missing.items()
    ]
    # a block is what one dead worker costs: it is made again from the same seeds, the others are kept
    blocks = -(-len(rows) // section.batch_items)
    data = ray.data.from_items(rows, override_num_blocks=blocks)
    data = data.map_batches(read_images, batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS)
    data = data.map_batches(
        Labeler,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(rollout.workers, blocks)),
        fn_constructor_args=(portable(teacher), rollout, section.traces, section.seed),
        num_cpus=rollout.cpus,
        num_gpus=rollout.gpus or None,
        resources=custom(rollout.resource),
        runtime_env={"env_vars": engine_environment(rollout)},
        ray_remote_args_fn=lambda: {"max_restarts": RESTARTS},
    )
    tables = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    # a restart must fit into the wait, too
    return within(
        (t for t in tables if len(t)),
        rollout.start_deadline_s + rollout.deadline_s,
        "the next batch of teacher labels",
        "see the Labeler actors' logs, or raise rollout.deadline_s",
    )


def read_images(table: pa.Table) -> pa.Table:
    """Add columns file (bytes as they are on disk) and error to fingerprint, id, prompt and image; a file that cannot
    be read is an error of its row."""
    files, errors = [], []
    for path in table.column("image").to_pylist():
        try:
            files.append(encoded_image(path).content)
            errors.append(None)
        except DataError as error:
            files.append(b"")
            errors.append(str(error))
    table = table.append_column("file", pa.array(files, pa.large_binary()))
    return table.append_column("error", pa.array(errors, pa.string()))


class Labeler:
    """Ray Data's actor around one vLLM engine with the teacher's weights."""

    def __init__(self, teacher: Path, rollout: RolloutSection, traces: int, seed: int) -> None:
        self.engine = RolloutWorker(teacher, rollout)
        self.traces, self.seed = traces, seed
        self.schema = label_schema(self.engine.text.rubric)
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `label_schema` for the rows of `read_images`."""
        rows = [row | _decoded(row) for row in table.to_pylist()]
        usable = [row for row in rows if row["error"] is None]
        asked = [(row["fingerprint"], row["prompt"], row["pixels"]) for row in usable]
        requests = teacher_requests(self.engine.text, asked, self.seed)
        groups = self.engine.generate(requests, max(1, self.traces), 1.0 if self.traces else 0.0) if requests else []
        log_q, valid, tokens = teacher_distributions(groups, self.engine.text.rubric)
        answered = {row["fingerprint"]: i for i, row in enumerate(usable)}
        return pa.Table.from_pylist(
            [self._row(row, answered.get(row["fingerprint"]), log_q, valid, tokens) for row in rows], self.schema
        )

    def _row(self, row: dict, at: int | None, log_q: Tensor, valid: Tensor, tokens: Tensor) -> dict:
        made = {"fingerprint": row["fingerprint"], "id": row["id"], "worker": self.name, "error": row["error"]}
        if at is None:
            return made
        names = list(enumerate(self.engine.text.rubric.dimensions))
        return made | {
            "log_q": {d: log_q[at, n].tolist() if valid[at, n] > 0 else None for n, d in names},
            "valid": {d: int(valid[at, n]) for n, d in names},
            "tokens": {d: int(tokens[at, n]) for n, d in names},
        }


def _decoded(row: dict) -> dict:
    """pixels, or error, of a row of `read_images`: decoded once, for all its questions."""
    if row["error"] is not None:
        return {}
    try:
        return {"pixels": decode_image(io.BytesIO(row["file"]), row["image"])}
    except DataError as error:
        return {"error": str(error)}


def teacher_requests(text: JudgeText, items: Sequence[tuple[str, str, AnyImage]], seed: int) -> list[JudgeRequest]:
    """[B * D] requests for (fingerprint, prompt, image), dimensions in order; seeded by content and dimension."""
    return [
        JudgeRequest(
            f"{name}/{dimension}", text.question(prompt, dimension), image, request_seed(seed, int(name[:12], 16), d)
        )
        for name, prompt, image in items
        for d, dimension in enumerate(text.rubric.dimensions)
    ]


def teacher_distributions(groups: Sequence[Sequence[Judgement]], rubric: Rubric) -> tuple[Tensor, Tensor, Tensor]:
    """(log_q [B, D, K] float32 nats, valid [B, D] long, tokens [B, D] long) of B * D groups of M traces.

    log_q is the log of the mean distribution over the well-formed traces, nan where there is none."""
    d, k = len(rubric.dimensions), len(rubric.bins)
    if not groups:
        return torch.zeros(0, d, k), torch.zeros(0, d, dtype=torch.long), torch.zeros(0, d, dtype=torch.long)
    labels = [
        [j.score_logprobs if j.score_index is not None else np.zeros(k, np.float32) for j in group] for group in groups
    ]
    formed = torch.tensor([[j.score_index is not None for j in group] for group in groups])
    log_q = score_log_distribution(torch.from_numpy(np.asarray(labels, np.float32)).double())
    mean = average_distributions(log_q.transpose(0, 1), formed.T).float()
    tokens = torch.tensor([sum(len(j.token_ids) for j in group) for group in groups])
    return mean.view(-1, d, k), formed.sum(1).view(-1, d), tokens.view(-1, d)


def labeling_bundles(rollout: RolloutSection) -> dict[str, list[dict[str, float]]]:
    """Role -> bundles the pipeline asks Ray for."""
    return {"labeler": worker_bundles(rollout), "reader": [bundle(READER_CPUS, 0)]}
