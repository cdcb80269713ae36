"""The jobs on real architectures at tiny width, with pictures of 512 to 1024 pixels and the hub's question.

Random weights write no score, so a judge is taught the form first. What follows is what a user does with a checkpoint
of the hub: GDSO on two ranks of ZeRO-3 with LoRA, a resume, RISD from the result, an evaluation. GDSO runs with every
architecture, the rest with the first one; ZR_ARCHITECTURES=all in the environment: with all (half an hour).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from parity import in_a_process
from PIL import Image
from real_judges import real_judge

from zr_ray.data.annotations import read_annotations
from zr_ray.rubric import DIMENSIONS
from zr_ray.world.build import write_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # four jobs with their engines an architecture
SIZES = ((768, 512), (512, 768), (1024, 576), (640, 640))
"""Width and height of the pictures, pixels."""
CHAIN = "It is there."
"""What a judge is taught to write before its score."""
ROWS = 4
"""Answers it learns from in one update."""
ENGINE = ["rollout.threads=1", "rollout.cpus=0.5", "rollout.max_num_seqs=32", "rollout.max_new_tokens=24"]
LEARNER = ["learner.threads=1", "learner.cpus=0.5", "evaluation.bootstrap_resamples=20", "learner.warmup_steps=1"]
QUIET = ["evaluation.before=false", "evaluation.every_steps=0", "run.trackers=[]"]
GDSO = ["gdso.steps=4", "gdso.pairs_per_step=2", "gdso.group_size=2", "gdso.reference_refresh_steps=2"]
GDSO += ["checkpoint.every_steps=2", "evaluation.items=4", "evaluation.samples=0"]
GDSO += ["learner.workers=2", "learner.zero_stage=3", "learner.lora_rank=4", "learner.lr=1e-3"]
SPLIT = ["rollout.tensor_parallel=2", "rollout.cpus=1.0"]
"""One engine over two processes; by one architecture, it starts slowly."""
KINDS = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen2_5_vl")
WHOLE = KINDS if os.environ.get("ZR_ARCHITECTURES") == "all" else KINDS[:1]


def teach(hub: str, data: str, saved: str, steps: int = 60) -> dict:
    """Learn `CHAIN` and a score behind it, on the data's own questions; returns the loss before and after."""
    from zr_ray.config.workers import LearnerSection
    from zr_ray.data.images import load_image
    from zr_ray.models.packing import Row
    from zr_ray.workers.learner import Learner

    learner, losses = Learner(hub, LearnerSection(threads=1, lr=5e-3, warmup_steps=0, zero_stage=1)), []
    text, rng, items = learner.text, np.random.default_rng(0), list(read_annotations(Path(data)))

    def row() -> list[Row]:
        item, dimension = items[rng.integers(len(items))], DIMENSIONS[rng.integers(4)]
        tokens, index = text.answer(int(rng.integers(9)), CHAIN)
        return [Row(text.question(item.prompt, dimension), load_image(item.image), (tokens,), (index,))]

    def loss(outputs, units, reference):
        told = -(outputs.logprobs * outputs.mask).sum() / (len(tokens) * ROWS)
        return told, {"loss/total": float(told.detach())}

    tokens, _ = text.answer(0, CHAIN)
    for step in range(steps):
        losses.append(learner.accumulate([row() for _ in range(ROWS)], loss).sums["loss/total"])
        learner.apply(5e-3 * min(1.0, (steps - step) / 20))
    learner.save_judge(Path(saved))
    return {"first": losses[0], "last": losses[-1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of a small world with large pictures."""
    folder = tmp_path_factory.mktemp("data")
    write_world(folder, train_groups=4, test_groups=2, candidates=2, seed=4)
    for n, item in enumerate(read_annotations(folder)):
        Image.open(item.image).resize(SIZES[n % len(SIZES)], Image.Resampling.BICUBIC).save(item.image)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def chain(request, ray_cluster, run_job, data, tmp_path_factory):
    """Folder of what comes of one architecture (hub, taught, gdso, and later risd, judged), and how to run more."""
    kind, root = request.param, tmp_path_factory.mktemp(request.param)
    width = 128 if kind == "qwen2_5_vl" else 64  # heads as wide as its rotary sections
    hub = real_judge(root / "hub", kind, "switch" if kind == "qwen3_5" else "none", width=width, spread=0.05)
    # vLLM's CPU kernels of recurrent layers compute in bf16 alone
    dtype = ["rollout.dtype=bfloat16", "learner.dtype=bfloat16"] if kind == "qwen3_5" else []
    common = [*ENGINE, *LEARNER, *dtype, f"run.root={root}"]

    def made(job, name, *told):
        assert run_job(job, *common, *told, f"run.name={name}") == 0, f"{kind}: {name}"
        return root / name

    learned = in_a_process(teach, str(hub), str(data), str(root / "taught"))
    print(kind, "taught:", learned)
    split = SPLIT if kind == "qwen3_vl" else []
    wide = [*QUIET, *GDSO, *split, f"judge.path={root / 'taught'}", f"data.path={data}"]
    made("gdso", "gdso", *wide)
    (root / "whole.jsonl").write_text((root / "gdso" / "metrics.jsonl").read_text())
    return SimpleNamespace(kind=kind, root=root, dtype=dtype, common=common, wide=wide, made=made)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_gdso_trains_with_sharded_adapters_and_proves_every_push(chain):
    steps = lines(chain.root / "whole.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step in steps:
        assert step["rollout/malformed_frac"] < 0.5, "it was taught to write a score"
        assert step["sync/max_abs_diff"] < (2.0 if chain.dtype else 5e-5), step
        assert step["learner/grad_norm"] > 0
    if not chain.dtype:
        assert (
            steps[0]["policy/ratio_max_abs_diff"] < 1e-4 and abs(steps[0]["policy/kl"]) < 1e-6 < steps[1]["policy/kl"]
        )
    result = json.loads((chain.root / "gdso" / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and result["rows"][-1]["method"] == "gdso"


@pytest.mark.parametrize("chain", WHOLE, indirect=True)
def test_it_resumes_to_the_same_curve(chain, run_job):
    """As if it had been killed after its second step's checkpoint."""
    run, whole = chain.root / "gdso", lines(chain.root / "whole.jsonl")
    shutil.rmtree(run / "checkpoints" / "step_000004")
    for name in ("judge", "result.json"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in whole[:3]))
    whole_engine = [word for word in chain.wide if word not in SPLIT]  # an engine may be another one after a resume
    assert run_job("gdso", *chain.common, *whole_engine, "--resume", str(run)) == 0
    again = lines(run / "metrics.jsonl")
    assert [line["step"] for line in again] == [1, 2, 3, 4]
    for one, other in zip(whole, again, strict=True):
        for name in ("loss/total", "reward/total", "learner/grad_norm", "policy/kl"):
            # two ranks share an engine, whose batches are as the clock has them
            assert other[name] == pytest.approx(one[name], rel=5e-2 if chain.dtype else 1e-4, abs=1e-6), name


@pytest.mark.parametrize("chain", WHOLE, indirect=True)
def test_risd_and_evaluation_take_what_gdso_left(chain, run_job, data):
    teacher = ["teacher.path=" + str(chain.root / "gdso" / "judge"), "label.traces=1"]
    steps = ["risd.steps=2", "risd.items_per_step=4", f"judge.path={chain.root / 'taught'}"]
    run = chain.made("risd", "risd", *QUIET, *teacher, *steps, f"data.path={data}", "checkpoint.every_steps=2")
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "SUCCEEDED" and result["rows"][-1]["tokens_per_score"] == 1
    assert all(0 < step["loss/total"] < 10 for step in lines(run / "metrics.jsonl"))
    engine = [word for word in chain.common if word.startswith(("rollout.", "run."))]
    asked = ["--judge", run / "judge", "--data", data, "--samples", "0", "evaluate.bootstrap_resamples=20"]
    assert run_job("evaluate", *asked, *engine, "run.name=judged") == 0
    rows = json.loads((chain.root / "judged" / "result.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["direct", "reasoning, greedy"]
    assert all(row["pooled"]["items"] == 4 * 4 for row in rows)
