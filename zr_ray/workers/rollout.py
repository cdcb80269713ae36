"""Rollout worker: one vLLM engine that reasons and scores.

The engine samples from the policy over the allowed vocabulary (image, video and special tokens have probability 0) at
temperature 1 and reports log-probs of that same distribution, so a learner that masks the same tokens gets an
importance ratio of 1. Every Judgement carries the version of the weights that made it; `update_weights` drops both
caches that hold results of older weights (prefix, encoder); processed pixels, which no weight touches, stay.
Left out on purpose: HTTP, queues, retries. Ray moves the calls, and a failed call is an exception.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zr_ray.config.weights import Transport
from zr_ray.config.workers import RolloutSection
from zr_ray.data.encoded import pixels
from zr_ray.errors import RolloutError, StaleWeightsError
from zr_ray.models.engine_limits import settled, tensor_parallel
from zr_ray.models.hub_layout import head_overrides
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import Judgement, JudgeRequest, ProbeQuestions
from zr_ray.run.travel import portable
from zr_ray.startup.torchvision_shim import child_environment
from zr_ray.workers.engine_weights import EngineWeights, transfer_arguments

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from zr_ray.run.placement import Fleet

FORBIDDEN_KEY = "zr_ray_forbidden_tokens"


def engine_environment(config: RolloutSection) -> dict[str, str]:
    """Environment of a process that hosts a rollout engine; must be set before vLLM is imported."""
    return child_environment() | {
        # in-process engine: starts in 3 s instead of 25 s, nothing is pickled between processes
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of the parts of an engine on several GPUs: CUDA is up by then
        "OMP_NUM_THREADS": str(config.threads),
    }


def rollout_fleet(
    run_id: str,
    judge: Path,
    config: RolloutSection,
    wait_for_nodes_s: float = 0.0,
    group: PlacementGroup | None = None,
    transport: Transport = "object_store",
) -> Fleet:
    """The rollout actors of a run, in their placement group (None: one that is asked for here). Imports Ray.
    transport: how weights will come in."""
    from zr_ray.run.placement import Fleet

    return Fleet(
        RolloutWorker,
        config,
        f"{run_id}/rollout",
        (portable(judge), config, transport),
        environment=engine_environment(config),
        start_deadline_s=config.start_deadline_s,
        wait_for_nodes_s=wait_for_nodes_s,
        group=group,
        restarts=config.restarts,
    )


@dataclass(frozen=True)
class Asked:
    """One prompt of an engine's batch and how it is decoded; `RolloutWorker.generate` says what each means."""

    request: JudgeRequest
    group_size: int
    temperature: float
    max_tokens: int
    min_tokens: int = 0
    direct: bool = False


def _probe(questions: ProbeQuestions | None) -> list[Asked]:
    if questions is None:
        return []
    return [Asked(r, 1, 0.0, questions.tokens) for r in questions.reasoned] + [
        Asked(r, 1, 0.0, 1, direct=True) for r in questions.direct
    ]


class RolloutWorker:
    """Owns one engine and its weights (`engine_weights.py`). Verbs: generate, score, probe, update_weights,
    receive_weights, held_weights, sleep, describe."""

    def __init__(self, judge: str | Path, config: RolloutSection, transport: Transport = "object_store") -> None:
        """transport: how weights come in, beside the object store, which always works."""
        os.environ.update(engine_environment(config))
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, and it would win over what is settled here
        self.text = JudgeText(Path(judge))
        self.config = config = settled(config, Path(judge))
        parts = tensor_parallel(config)
        from vllm import LLM

        self._llm = LLM(
            model=str(judge),
            hf_overrides=head_overrides(Path(judge)),
            dtype=config.dtype,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_batched_tokens,
            max_model_len=config.max_model_len,
            limit_mm_per_prompt={"image": _image_limit(config), "video": 0},
            enforce_eager=config.enforce_eager,
            block_size=config.block_size,
            enable_chunked_prefill=config.chunked_prefill,
            enable_prefix_caching=config.prefix_caching,
            # the model in this process, where one GPU is enough: pushes need no second hop
            distributed_executor_backend="uni" if parts == 1 else "mp",
            tensor_parallel_size=parts,
            enable_sleep_mode=bool(config.sleep),
            **transfer_arguments(config, transport),
            **self._memory(config),
            # log-probs after masking and temperature, which is the distribution that was sampled from
            logprobs_mode="processed_logprobs",
            max_logprobs=len(self.text.label_ids),
            logits_processors=["zr_ray.workers.vocabulary:ForbidTokens"],
            additional_config={FORBIDDEN_KEY: list(self.text.forbidden_ids)},
            seed=0,  # of the engine; every request brings its own
            disable_log_stats=True,
        )
        # on CPU it answers each of its own calls of torch.set_num_threads with the same warning, some for every image
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
        self.weights = EngineWeights(self._llm, Path(judge), config)

    @staticmethod
    def _memory(config: RolloutSection) -> dict[str, float | int | None]:
        """How much the engine may take: part of a GPU, or bytes of cache."""
        if config.gpus > 0:
            return {"gpu_memory_utilization": config.gpu_memory_frac}
        return {"kv_cache_memory_bytes": int((config.kv_cache_gib or 0) * 2**30)}

    def generate(
        self,
        requests: Sequence[JudgeRequest],
        group_size: int,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        version: int | None = None,
        min_tokens: int = 0,
        newer: bool = False,
        probe: ProbeQuestions | None = None,
    ) -> list[list[Judgement]]:
        """Sample `group_size` outputs (reasoning and score) per request.

        Args: temperature: 1 samples the policy itself, 0 decodes greedily (group_size must be 1); reported log-probs
            are those of the distribution sampled from. max_tokens: instead of rollout.max_new_tokens. version: of the
            weights that must answer; None: whatever it holds. min_tokens: outputs cannot end before; for measurements
            of speed, what is sampled is not the policy then. newer: weights newer than `version` may answer too. probe:
            answered in the same batch of the engine, which costs less than a call of its own.
        Returns: per request, in order, its Judgements 0..group_size-1, and behind them, of each probe question, one. An
            output without a score within the length limit has score_index None.   Raises: RolloutError if answers do
            not line up with the requests; StaleWeightsError if other weights are here."""
        self._require(version, newer)
        asked = [
            Asked(r, group_size, temperature, max_tokens or self.config.max_new_tokens, min_tokens) for r in requests
        ]
        return self._run(asked + _probe(probe))

    def score(self, requests: Sequence[JudgeRequest], version: int | None = None) -> list[Judgement]:
        """One-token scores without reasoning; the questions must end with the marker
        (`JudgeText.question(direct=True)`). version, Raises: as in `generate`."""
        self._require(version)
        return [group[0] for group in self._run([Asked(r, 1, 0.0, 1, direct=True) for r in requests])]

    def probe(self, questions: ProbeQuestions, version: int | None = None) -> list[Judgement]:
        """Answers to a push's questions, in order. version, Raises: as in `generate`."""
        self._require(version)
        return [group[0] for group in self._run(_probe(questions))]

    def _run(self, asked: Sequence[Asked]) -> list[list[Judgement]]:
        from vllm import SamplingParams

        prompts = [
            {"prompt_token_ids": a.request.token_ids.tolist(), "multi_modal_data": {"image": _image(a.request)}}
            for a in asked
        ]
        parameters = [
            SamplingParams(
                n=a.group_size,
                temperature=a.temperature,
                seed=a.request.seed if a.temperature > 0 else None,
                max_tokens=a.max_tokens,
                min_tokens=a.min_tokens,
                stop_token_ids=[self.text.end_id],
                # q needs the labels at the score position, which is known only afterwards: asked for at every token
                logprob_token_ids=list(self.text.label_ids),
                flat_logprobs=True,  # arrays instead of an object per token
                detokenize=False,  # the text side reads tokens; reports make words of the few they show
            )
            for a in asked
        ]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        if len(outputs) != len(asked):
            raise RolloutError(f"the engine must answer {len(asked)} requests, answered {len(outputs)}")
        return [self._judgements(a, output) for a, output in zip(asked, outputs, strict=True)]

    def _judgements(self, asked: Asked, output) -> list[Judgement]:
        key = asked.request.key
        if len(output.outputs) != asked.group_size:
            raise RolloutError(f"{key}: {asked.group_size} samples were asked for, {len(output.outputs)} came")
        return [self._judgement(key, n, completion, asked.direct) for n, completion in enumerate(output.outputs)]

    def _judgement(self, key: str, sample: int, completion, direct: bool) -> Judgement:
        tokens = np.asarray(completion.token_ids, dtype=np.int32)
        flat = completion.logprobs
        starts = np.asarray(flat.start_indices)
        values = np.asarray(flat.logprobs, dtype=np.float32)  # per position: the sampled token first, then the labels
        score_index = 0 if direct else self.text.score_index(tokens)
        score_logprobs = None
        if score_index is not None:
            at = slice(flat.start_indices[score_index], flat.end_indices[score_index])
            by_token = dict(zip(flat.token_ids[at], flat.logprobs[at], strict=True))
            score_logprobs = np.asarray([by_token[t] for t in self.text.label_ids], dtype=np.float32)
        return Judgement(key, sample, tokens, values[starts], score_index, score_logprobs, self.policy_version)

    def update_weights(self, version: int, buckets: Iterable) -> int:
        """Replace the engine's weights without a restart.

        Args: version: policy version the weights belong to. buckets: safetensors bytes (or Ray object references to
            them) with Hugging Face parameter names; together they hold every parameter once.
        Returns: the version now held. The caller proves the push with a probe (see `weights.py`)."""
        self.weights.load(version, buckets)
        return version

    def transfer_group(self) -> str:
        """Broadcast group that this engine is in; empty for none, as after a restart."""
        return self.weights.group

    def join_transfer(self, group: str, init_info: dict) -> None:
        """Enter a broadcast group, or learn how to read CUDA IPC. init_info: of vLLM's weight-transfer engine."""
        self.weights.join(group, init_info)

    def receive_weights(self, version: int, update_info: dict) -> int:
        """Replace the weights by what the learner broadcasts. update_info: of vLLM's weight-transfer engine.

        Returns: the version now held. A transfer that breaks off ends this actor's process."""
        self.weights.receive(version, update_info)
        return version

    def open_update(self) -> None:
        """Begin an update that comes in several parts."""
        self.weights.open()

    def take_part(self, update_info: dict) -> None:
        """One part; the sender may overwrite it when this returns."""
        self.weights.take(update_info)

    def close_update(self, version: int) -> int:
        """End an update that came in parts. Returns: the version now held."""
        self.weights.close(version)
        return version

    def sleep(self) -> None:
        """Give the GPU's memory to the learner until the next push; nothing unless `rollout.sleep`."""
        self.weights.sleep()

    @property
    def policy_version(self) -> int:
        """Of the weights inside; -1 where nobody has pushed any."""
        return self.weights.version

    def weights_checksum(self) -> str:
        """Digest of what the last push read (`weights.Checksum`); empty before the first."""
        return self.weights.checksum

    def held_weights(self) -> tuple[int, list]:
        """(version, references to its buckets): where a replacement of another worker finds the current weights if the
        rank that asks has not sent them itself. No references if they came as bytes, or by a transfer of which no copy
        is kept."""
        return self.weights.version, [handle for handle in self.weights.handles if not isinstance(handle, bytes)]

    def keep_weights(self, version: int, handles: list) -> None:
        """Remember where buckets of `version` are, for replacements of other workers; after a transfer, which leaves
        none here."""
        if self.weights.version == version:
            self.weights.handles = handles

    def release_weights(self) -> None:
        """Forget the references: new weights are on their way, and the object store need not hold both."""
        self.weights.handles = []

    def _require(self, version: int | None, newer: bool = False) -> None:
        if version is None or version == self.policy_version or (newer and self.policy_version > version):
            return
        raise StaleWeightsError(
            f"answers of policy version {version} were asked for, this rollout worker holds {self.policy_version};"
            " push the weights first"
        )

    def describe(self) -> dict[str, str | int]:
        """Where this worker runs and what it holds, for logs and the dashboard."""
        import socket

        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "policy_version": self.policy_version,
            "threads": self.config.threads,
        }


def _image_limit(config: RolloutSection) -> dict[str, int]:
    """One image a question; its largest size, where it is known, is what vLLM plans encoder memory with."""
    if config.largest_image is None:
        return {"count": 1}
    height, width = config.largest_image
    return {"count": 1, "height": height, "width": width}


def _image(request: JudgeRequest):
    from PIL import Image

    return Image.fromarray(pixels(request.image))
