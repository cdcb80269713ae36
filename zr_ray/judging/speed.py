"""How fast a judge judges, three ways; see jobs/bench/judge.py. Every way maps (images, prompts) to [B, D, K] log q.

A part is a process that prints READY, and then for each line on its standard input the seconds of one turn: parent and
parts take turns, nothing runs at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zr_ray.config.workers import RolloutSection
from zr_ray.errors import RolloutError
from zr_ray.models.judge_text import judge_folder
from zr_ray.records import JudgeRequest
from zr_ray.rubric import ScoringFormat
from zr_ray.startup.torchvision_shim import child_environment

PARTS = ("teacher", "student-vllm", "student-transformers", "student-one-forward")
_NAMES = {
    "teacher": "(a) teacher, reasoning, vLLM",
    "student-vllm": "(b) student, a dimension per forward, vLLM",
    "student-transformers": "(b) student, a dimension per forward, transformers",
    "student-one-forward": "(c) student, all dimensions in one forward",
}
Way = Callable[[Sequence[np.ndarray], Sequence[str]], tuple[Tensor, float]]
"""(images [H, W, 3] uint8, prompts) -> ([B, D, K] log q, output tokens per score)."""


def measure(args, command: Sequence[str]) -> dict:
    """Start every part, let them take turns. Returns part -> {"images_per_s", "turns_s", "tokens_per_score"} and
    "settings".

    Raises RolloutError with the end of its output if a part fails."""
    together = (
        [[part] for part in args.parts] if args.gpus else [list(args.parts)]
    )  # an engine takes the GPU's memory for itself
    figures = {}
    for parts in together:
        for part, turns in _take_turns(parts, args, command).items():
            seconds = [turn["seconds"] for turn in turns[1:]]  # the first one warms up
            figures[part] = {
                "images_per_s": args.images / min(seconds),
                "turns_s": seconds,
                "tokens_per_score": turns[-1]["tokens"],
            }
    names = ("images", "batch", "threads", "gpus", "teacher", "student", "trace_tokens")
    judge = args.teacher if args.parts == ["teacher"] else args.student
    dimensions = len(ScoringFormat.load(judge_folder(judge)).dimensions)
    return figures | {"settings": {name: getattr(args, name) for name in names} | {"dimensions": dimensions}}


def _take_turns(parts: Sequence[str], args, command: Sequence[str]) -> dict[str, list[dict]]:
    environment = os.environ | child_environment() | {"OMP_NUM_THREADS": str(args.threads)}
    running = {}
    try:
        for part in parts:
            running[part] = subprocess.Popen(
                [*command, "--serve-part", part],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            _answer(running[part], part)
        turns: dict[str, list[dict]] = {part: [] for part in running}
        for _ in range(args.turns + 1):
            for part, process in running.items():
                process.stdin.write("turn\n")
                process.stdin.flush()
                turns[part].append(_answer(process, part))
        return turns
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _answer(process: subprocess.Popen, part: str) -> dict:
    """The part's next line of its own; what libraries print goes by."""
    said = []
    for line in process.stdout:
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
        said.append(line)
    raise RolloutError(f"the part {part} must answer, it ended with code {process.wait()}: {''.join(said[-5:])}")


def speed_table(figures: dict) -> str:
    """Table and ratios as text."""
    s = figures["settings"]
    lines = [
        f"{s['images']} images in {s['dimensions']} dimensions a turn, {s['threads']} thread(s), {s['gpus']} GPU,"
        f" batches of {s['batch']}; fastest turn (all turns)"
        + (f"; outputs of the teacher forced to {s['trace_tokens']} tokens" if s.get("trace_tokens") else "")
    ]
    for part, name in _NAMES.items():
        if part in figures:
            own = figures[part]
            turns = " ".join(f"{t:.2f}" for t in own["turns_s"])
            per_score = 1000 / own["images_per_s"] / s["dimensions"]
            rates = (
                f"{own['images_per_s']:8.1f} images/s {own['images_per_s'] * s['dimensions']:9.1f} images/s per"
                " dimension"
            )
            lines.append(
                f"{name:52s}{rates}  {per_score:8.2f} ms per score  {own['tokens_per_score']:5.1f} tokens  ({turns} s)"
            )
    rate = {part: figures[part]["images_per_s"] for part in PARTS if part in figures}
    one = rate.get("student-one-forward")
    ratios: list[str] = []
    if one and "teacher" in rate:
        both = zip(figures["teacher"]["turns_s"], figures["student-one-forward"]["turns_s"], strict=True)
        each = " ".join(f"{slow / fast:.1f}" for slow, fast in both)
        ratios.append(f"(c) / (a) = {one / rate['teacher']:.1f} (aim: at least 20; turn by turn {each})")
    if one and {"student-vllm", "student-transformers"} <= set(rate):
        best = max(rate["student-vllm"], rate["student-transformers"])
        ratios.append(f"(c) / best (b) = {one / best:.2f} (aim: at least 2.5)")
        if "teacher" in rate:
            ratios.append(f"best (b) / (a) = {best / rate['teacher']:.1f}")
    return "\n".join([*lines, *(["   ".join(ratios)] if ratios else [])])


# ---- inside a part ----


def one_part(args) -> None:
    """Serve turns until standard input ends."""
    way = {
        "teacher": _teacher,
        "student-vllm": _student_vllm,
        "student-transformers": _student_transformers,
        "student-one-forward": _one_forward,
    }[args.serve_part](args)
    _say({"ready": args.serve_part})
    for turn, _ in enumerate(sys.stdin):
        images, prompts = scenes(args.images, seed=turn)  # new images every turn: nothing may come from a cache
        start = time.perf_counter()
        log_q, tokens = way(images, prompts)
        seconds = time.perf_counter() - start
        if len(log_q) != args.images:
            raise RolloutError(f"{args.serve_part} must score {args.images} images, got {tuple(log_q.shape)}")
        _say({"seconds": seconds, "tokens": tokens})


def _say(value: dict) -> None:
    print("RESULT " + json.dumps(value), flush=True)


def scenes(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Images [64, 64, 3] uint8 and prompts of the built-in world."""
    from zr_ray.world.render import render
    from zr_ray.world.sampling import sample_group

    rng = np.random.default_rng((17, seed, 1))
    members = [member for _ in range(-(-count // 4)) for member in sample_group(rng)][:count]
    return [render(m.scene) for m in members], [m.prompt for m in members]


def _engine(args, judge: str):
    from zr_ray.workers.rollout import RolloutWorker

    dtype = "bfloat16" if args.gpus else "float32"
    section = RolloutSection(
        threads=args.threads,
        gpus=args.gpus,
        dtype=dtype,
        max_num_seqs=512,
        max_model_len=None if args.gpus else 256 + args.trace_tokens,
        max_new_tokens=max(args.max_new_tokens, args.trace_tokens),
    )
    folder = judge_folder(judge)
    return RolloutWorker(str(_with_positions(folder, section.max_model_len) if args.trace_tokens else folder), section)


def _with_positions(folder: Path, positions: int | None) -> Path:
    """The judge's files, and a configuration that allows so many positions: rotary ones have no table to end."""
    longer = Path(tempfile.mkdtemp(prefix="zr_ray-judge-"))
    for file in folder.iterdir():
        (longer / file.name).symlink_to(file)
    tree = json.loads((folder / "config.json").read_text())
    text = tree.get("text_config", tree)
    text["max_position_embeddings"] = max(positions or 0, text["max_position_embeddings"])
    (longer / "config.json").unlink()
    (longer / "config.json").write_text(json.dumps(tree))
    return longer


def _requests(text, images, prompts, direct: bool) -> list[JudgeRequest]:
    return [
        JudgeRequest(f"{i}/{d}", text.question(prompt, d, direct), image, len(text.rubric.dimensions) * i + n)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        for n, d in enumerate(text.rubric.dimensions)
    ]


def _teacher(args) -> Way:
    from zr_ray.judging.label import teacher_distributions

    engine = _engine(args, args.teacher)

    def judge(images, prompts):
        requests = _requests(engine.text, images, prompts, direct=False)
        # a forced trace may end without a score: its distribution is nan, its time is what is asked for
        answers = engine.generate(requests, 1, 1.0, min_tokens=args.trace_tokens)
        log_q, _, tokens = teacher_distributions(answers, engine.text.rubric)
        return log_q, float(tokens.float().mean())

    return judge


def _student_vllm(args) -> Way:
    engine = _engine(args, args.student)

    def judge(images, prompts):
        answers = engine.score(_requests(engine.text, images, prompts, direct=True))
        return (
            torch.from_numpy(np.stack([a.score_logprobs for a in answers]))
            .log_softmax(-1)
            .view(len(images), len(engine.text.rubric.dimensions), -1),
            1.0,
        )

    return judge


def _student(args):
    from zr_ray.models.student import Student

    torch.set_num_threads(args.threads)
    device = "cuda" if args.gpus else "cpu"
    return Student(judge_folder(args.student), torch.bfloat16 if args.gpus else torch.float32).to(device), device


@torch.no_grad()
def _batched(args, images, prompts, device: str, forward) -> Tensor:
    parts = []
    for first in range(0, len(images), args.batch):
        chunk = slice(first, first + args.batch)
        pixels = torch.from_numpy(np.stack(images[chunk])).to(device).permute(0, 3, 1, 2).float() / 255
        parts.append(forward(pixels, prompts[chunk]))
    return torch.cat(parts).cpu()


def _one_forward(args) -> Way:
    student, device = _student(args)
    return lambda images, prompts: (_batched(args, images, prompts, device, lambda x, p: student(x, p).log_q), 1.0)


def _student_transformers(args) -> Way:
    """The model's own forward, as transformers has it, on left-padded questions, one batch per dimension, logits of the
    last position only."""
    from transformers import AutoModelForImageTextToText

    student, device = _student(args)
    text, preprocess, dtype = student.text, student.preprocess, student.judge.model.dtype
    # a model of its own: the student's takes our shortcuts, a user's does not
    model = AutoModelForImageTextToText.from_pretrained(judge_folder(args.student), dtype=dtype).to(device).eval()
    from zr_ray.models.packing import expand_image

    def one_dimension(pixels, prompts, dimension):
        patches, grid = preprocess(pixels)
        tokens = preprocess.image_tokens(*pixels.shape[-2:])
        questions = [
            expand_image(text.question(p, dimension, direct=True), text.image_token_id, tokens) for p in prompts
        ]
        width = max(map(len, questions))
        ids = torch.tensor([[0] * (width - len(q)) + q.tolist() for q in questions], device=device)
        mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in questions], device=device)
        types = (ids == text.image_token_id).int()
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grid.to(device),
            mm_token_type_ids=types,
            logits_to_keep=1,
            use_cache=False,
        ).logits[:, -1, list(text.label_ids)]
        return logits.float().log_softmax(-1)

    def forward(pixels, prompts):
        return torch.stack([one_dimension(pixels, prompts, d) for d in student.rubric.dimensions], 1)

    return lambda images, prompts: (_batched(args, images, prompts, device, forward), 1.0)
