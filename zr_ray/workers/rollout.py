"""Rollout worker: one vLLM engine that reasons and scores.

The engine samples from the policy over the allowed vocabulary (image, video and special tokens have probability 0) at
temperature 1 and reports log-probs of that same distribution, so a learner that masks the same tokens gets an
importance ratio of 1. Every Judgement carries the version of the weights that made it; `update_weights` drops both
caches that hold results of older weights (prefix, encoder); processed pixels, which no weight touches, stay.
Left out on purpose: HTTP, queues, retries. Ray moves the calls, and a failed call is an exception.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from zr_ray.config.sections import RolloutSection
from zr_ray.data.encoded import pixels
from zr_ray.errors import RolloutError, StaleWeightsError
from zr_ray.models.engine_limits import settled, tensor_parallel
from zr_ray.models.hub_layout import has_tied_head, head_overrides, save_sharded, with_head
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import Judgement, JudgeRequest, ProbeQuestions
from zr_ray.run.travel import portable
from zr_ray.startup.torchvision_shim import child_environment
from zr_ray.workers.experts import forget_kernels

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup
    from torch import Tensor

    from zr_ray.run.placement import Fleet

SHARED_MEMORY = Path("/dev/shm")
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
    run_id: str, judge: Path, config: RolloutSection, wait_for_nodes_s: float = 0.0, group: PlacementGroup | None = None
) -> Fleet:
    """The rollout actors of a run, in their placement group (None: one that is asked for here). Imports Ray."""
    from zr_ray.run.placement import Fleet

    return Fleet(
        RolloutWorker,
        config,
        f"{run_id}/rollout",
        (portable(judge), config),
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
    """Owns one engine. Verbs: generate, score, probe, update_weights, held_weights, describe."""

    def __init__(self, judge: str | Path, config: RolloutSection) -> None:
        os.environ.update(engine_environment(config))
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, and it would win over what is settled here
        self.text = JudgeText(Path(judge))
        self.config = config = settled(config, Path(judge))
        # nobody has pushed weights yet; the folder's own weights are never rolled out unverified
        self.policy_version = -1
        self._checksum, self._handles = "", []
        self._folder = Path(judge)
        self._push_folder: TemporaryDirectory | None = None
        self._parts = tensor_parallel(config)
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
            distributed_executor_backend="uni" if self._parts == 1 else "mp",
            tensor_parallel_size=self._parts,
            **self._memory(config),
            # log-probs after masking and temperature, which is the distribution that was sampled from
            logprobs_mode="processed_logprobs",
            max_logprobs=len(self.text.label_ids),
            logits_processors=["zr_ray.workers.vocabulary:ForbidTokens"],
            additional_config={FORBIDDEN_KEY: list(self.text.forbidden_ids)},
            seed=0,  # of the engine; every request brings its own
            disable_log_stats=True,
        )

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
        from zr_ray.workers.weights import Checksum, read_buckets

        buckets = list(buckets)
        # vLLM's own loader maps Hugging Face names to fused layers, so nothing here knows the architecture
        read = Checksum()
        self._reload(read.over(read_buckets(buckets)), through_files=self._parts > 1)
        self._checksum = read.digest
        if not self._llm.reset_prefix_cache():
            raise RolloutError(
                "vLLM refused to drop its prefix cache after a weight push; requests must not be in flight"
            )
        self._llm.llm_engine.reset_encoder_cache()  # image features of the old vision tower
        self.policy_version, self._handles = version, buckets
        return version

    def _reload(self, named: Iterable[tuple[str, Tensor]], through_files: bool) -> None:
        """Load a stream of named tensors. through_files: for an engine of several processes, which an iterator cannot
        reach: each reads its part from files in shared memory, one copy a node while it lasts."""
        named = with_head(named, has_tied_head(self._folder))
        if self.config.gpus == 0:
            self._llm.apply_model(forget_kernels)
        if not through_files:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
            return
        if self._push_folder is None:
            self._push_folder = self._without_weights()
        folder = Path(self._push_folder.name)
        save_sharded(named, folder)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        for path in folder.glob("*.safetensors*"):
            path.unlink()

    def _without_weights(self) -> TemporaryDirectory:
        """A folder in shared memory with all files of the judge but its weights. It stays as long as this worker: from
        the first push on vLLM looks there for the processor too."""
        made = TemporaryDirectory(prefix="zr_ray_push_", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        for path in self._folder.iterdir():
            if ".safetensors" not in path.name:
                (Path(made.name) / path.name).symlink_to(path.absolute())
        return made

    def weights_checksum(self) -> str:
        """Digest of what the last push read (`weights.Checksum`); empty before the first."""
        return self._checksum

    def held_weights(self) -> tuple[int, list]:
        """(version, the references that `update_weights` got): where a replacement of another worker finds the current
        weights if the rank that asks has not sent them itself. No references if they came as bytes."""
        return self.policy_version, [handle for handle in self._handles if not isinstance(handle, bytes)]

    def release_weights(self) -> None:
        """Forget the references: new weights are on their way, and the object store need not hold both."""
        self._handles = []

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
