"""What `jobs/bench/gdso.py` compares a GDSO step with, a process each: bare vLLM, a bare forward and backward, and TRL.

    python jobs/bench/gdso_parts.py generate|train|trl --judge FOLDER --data FOLDER --rollouts FILE --pairs 48 ...

Prints a line `RESULT {...}`. `generate` writes what it sampled to --rollouts, which `train` reads. `trl` needs the
extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import zr_ray  # noqa: F401  the torchvision shim, before anything imports transformers
from zr_ray.config.arguments import whole


def main() -> None:
    """Run one part and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["generate", "train", "trl"])
    for name in ("judge", "data", "rollouts"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("pairs", "group-size", "max-new-tokens", "steps", "threads", "max-model-len"):
        parser.add_argument(f"--{name}", type=whole(1), required=True)
    args = parser.parse_args()
    parts = {"generate": bare_generate, "train": bare_train, "trl": trl_steps}
    print("RESULT " + json.dumps(parts[args.part](args)), flush=True)


def batches(args):
    """(text side of the judge, requests of each step), the same pairs in every part."""
    from zr_ray.data.load import load_split
    from zr_ray.data.pairs import PairSchedule, preference_pairs
    from zr_ray.judging.ask import pair_requests
    from zr_ray.models.judge_text import JudgeText

    text = JudgeText(args.judge)
    schedule = PairSchedule(preference_pairs(load_split(args.data, "train")), args.pairs, 0)
    return text, [pair_requests(text, schedule.batch(s), s, 0, range(args.pairs)) for s in range(args.steps + 2)]


def bare_generate(args) -> dict:
    """vLLM's own LLM.generate, no log-probs, no seeds, nothing forbidden: the limit of a rollout phase."""
    from zr_ray.config.workers import RolloutSection
    from zr_ray.workers.rollout import engine_environment

    os.environ.update(engine_environment(RolloutSection(threads=args.threads)))
    from PIL import Image
    from vllm import LLM, SamplingParams

    from zr_ray.data.encoded import pixels

    text, steps = batches(args)
    llm = LLM(
        str(args.judge),
        dtype="float32",
        max_num_seqs=512,
        max_num_batched_tokens=8192,
        max_model_len=args.max_model_len,
        enforce_eager=True,
        distributed_executor_backend="uni",
        kv_cache_memory_bytes=2**30,
        limit_mm_per_prompt={"image": 1},
    )
    parameters = SamplingParams(
        n=args.group_size,
        temperature=1.0,
        max_tokens=args.max_new_tokens,
        stop_token_ids=[text.end_id],
        detokenize=False,
    )
    seconds, kept = [], []
    for requests in steps:
        prompts = [
            {"prompt_token_ids": r.token_ids.tolist(), "multi_modal_data": {"image": Image.fromarray(pixels(r.image))}}
            for r in requests
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        kept.append([[list(c.token_ids) for c in o.outputs] for o in outputs])
    args.rollouts.write_text(json.dumps(kept))
    return {"seconds": seconds[2:]}


def bare_train(args) -> dict:
    """Forward and backward of the sampled tokens with the model alone: no DeepSpeed, no objective, no optimizer."""
    import numpy as np
    import torch

    from zr_ray.models.judge import load_packed_judge
    from zr_ray.models.packing import Row

    torch.set_num_threads(args.threads)
    module, _, packer = load_packed_judge(args.judge, torch.float32)
    for name, parameter in module.model.named_parameters():
        parameter.requires_grad_(not name.startswith("model.visual"))
    text, steps = batches(args)
    allowed = np.arange(text.vocab_size, dtype=np.int32)
    # the bare engine forbids nothing, and a sampled image token would want an image; the lengths stay
    allowed[list(text.forbidden_ids)] = text.end_id
    seconds = []
    for requests, groups in zip(steps, json.loads(args.rollouts.read_text()), strict=True):
        rows = [
            Row(r.token_ids, r.image, tuple(allowed[c] for c in g), (None,) * len(g))
            for r, g in zip(requests, groups, strict=True)
        ]
        start = time.perf_counter()
        rows.sort(key=lambda row: -sum(map(len, row.completions)))
        for first in range(0, len(rows), 64):
            module(packer.pack(rows[first : first + 64])).logprobs.sum().backward()
        seconds.append(time.perf_counter() - start)
        module.zero_grad()
    return {"seconds": seconds[2:]}


def trl_steps(args) -> dict:
    """TRL's GRPOTrainer with Hugging Face generate, fp32, on the same questions, group size and completion limit."""
    import datasets
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from zr_ray.data.load import load_split
    from zr_ray.data.pairs import PairSchedule, preference_pairs
    from zr_ray.models.judge_text import JudgeText
    from zr_ray.rubric import ScoringFormat

    torch.set_num_threads(args.threads)
    folder = args.judge
    form = ScoringFormat.load(folder)
    schedule = PairSchedule(preference_pairs(load_split(args.data, "train")), args.pairs, 0)
    asked = [
        (item, p.dimension) for s in range(args.steps + 2) for p in schedule.batch(s) for item in (p.winner, p.loser)
    ]
    datasets.config.TORCHCODEC_AVAILABLE = False  # images only, and its wheel needs CUDA libraries
    data = datasets.Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": form.questions[d].replace("{prompt}", item.prompt)}],
                "image": Image.open(item.image).convert("RGB"),
            }
            for item, d in asked
        ]
    )
    stamps: list[float] = []

    class Stamp(TrainerCallback):
        def on_step_end(self, *_, **__):
            stamps.append(time.perf_counter())

    per_step = args.pairs * 2 * args.group_size
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("model.visual"))
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=per_step,
            num_generations=args.group_size,
            max_completion_length=args.max_new_tokens,
            max_steps=args.steps + 2,
            beta=0.0,
            learning_rate=1e-6,
            report_to=[],
            save_strategy="no",
            logging_steps=10**6,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            temperature=1.0,
            # a sampled image token would want an image in the forward of its log-probs
            generation_kwargs={"suppress_tokens": list(JudgeText(folder).forbidden_ids)},
            shuffle_dataset=False,
            dataloader_num_workers=0,
        )
        trainer = GRPOTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=AutoProcessor.from_pretrained(folder),
            reward_funcs=lambda completions, **_: [float(len(str(c))) for c in completions],
            callbacks=[Stamp()],
        )
        trainer.train()
    return {"steps_s": [b - a for a, b in zip(stamps[1:], stamps[2:], strict=False)]}


if __name__ == "__main__":
    main()
