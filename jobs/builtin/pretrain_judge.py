"""Makes the built-in base judge from the simulated rubric world, on one CPU core.

    python jobs/builtin/pretrain_judge.py --config jobs/configs/pretrain_judge.yaml --out FOLDER [--resume] [key=value
    ...]

Stage 1, perception: the vision tower learns what stands where and how degraded the image is, through throw-away heads.
Images are rendered scenes with their truth and, with a pool (`jobs/data/make_image_pool.py`), generated ones with what
the verifier reads. Stage 2, language: questions and answers `<chain> score <label>` and `score <label>`, the perception
loss going on. Score labels are an overall impression (mean of the four true scores plus noise, the same for every
dimension): the base perceives and reasons, but has never seen the rubric. Scenes are drawn fresh for every step, from
the seed and the step number alone. FOLDER gets metrics.jsonl, checkpoint.pt (with --resume the run goes on from it),
perception.pt after stage 1 (where `jobs/builtin/fit_judge.py` can start) and judge/, a complete folder with a model
card.
Left out on purpose: Ray; this is one process on one core, run once per change of the world.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.builtin.judge_pretraining import STAGES, PretrainConfig, Pretraining
from zr_ray.builtin.tiny_card import model_card
from zr_ray.builtin.tiny_evaluation import evaluate_tiny_judge
from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.errors import ZrRayError


def train(run: Pretraining, out: Path, resume: bool) -> float:
    """Both stages; returns the seconds this process spent in steps."""
    stage_at, step_at = run.load(out / "checkpoint.pt") if resume else (STAGES[0], 0)
    config, begun = run.config, time.monotonic()
    with open(out / "metrics.jsonl", "a" if resume else "w") as journal:
        for stage in STAGES[STAGES.index(stage_at) :]:
            steps, first = getattr(config, stage).steps, step_at if stage == stage_at else 0
            if not (resume and stage == stage_at):
                run.start(stage)
            started = time.monotonic()
            for step in range(first, steps):
                metrics = run.step(stage, step)
                if (step + 1) % config.log_steps == 0 or step + 1 == steps:
                    pace = (time.monotonic() - started) / (step + 1 - first)
                    journal.write(json.dumps({"stage": stage, "step": step + 1, **metrics}) + "\n")
                    journal.flush()
                    shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k in SHOWN[stage])
                    left = f"{pace:.2f} s/step  ETA of stage {pace * (steps - step - 1) / 60:.1f} min"
                    print(f"{stage} {step + 1}/{steps}  {shown}  {left}", flush=True)
                if (step + 1) % config.checkpoint_steps == 0 or step + 1 == steps:
                    run.save(out / "checkpoint.pt", stage, step + 1)
                if step + 1 == steps:
                    run.save(out / f"{stage}.pt", stage, step + 1)
    return time.monotonic() - begun


SHOWN = {
    "perception": ("perception_loss", "shape", "color", "size", "floating", "shadow", "noise", "clutter"),
    "language": ("perception_loss", "shape", "chain_nll", "token_accuracy", "label_nll"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=schema_help(PretrainConfig)
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "pretrain_judge.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, metrics and the judge")
    parser.add_argument("--resume", action="store_true", help="go on from FOLDER/checkpoint.pt")
    parser.add_argument("--weights", type=Path, help="begin with these: a checkpoint of this job or of fit_judge.py")
    parser.add_argument("--tower", type=Path, help="with --weights: the vision tower from this checkpoint instead")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. language.steps=50")
    arguments = parser.parse_args()
    try:
        config = load_config(PretrainConfig, arguments.config, arguments.overrides)
        print(dump_yaml(config), flush=True)
        if arguments.dry_run:
            return 0
        arguments.out.mkdir(parents=True, exist_ok=True)
        run = Pretraining(config, arguments.out / "judge")
        if arguments.weights and not arguments.resume:
            run.start_from(arguments.weights, arguments.tower)
        seconds = train(run, arguments.out, arguments.resume)
        run.model.eval().save_pretrained(run.folder)
        figures = evaluate_tiny_judge(run.model, run.tokenizer, run.writer, config.seed + 1, config.evaluation_groups)
        for name, value in figures.items():
            print(f"{name:36s} {value:.3f}")
        parameters = sum(p.numel() for p in run.model.parameters())
        card = model_card(
            dump_yaml(config), figures, config.evaluation_groups, parameters, seconds / 60, torch.get_num_threads()
        )
        (run.folder / "README.md").write_text(card)
        print(f"judge in {run.folder} after {seconds / 60:.1f} min; use it with judge.path={run.folder}")
    except ZrRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main())
