"""Makes the built-in base judge from the simulated rubric world, on one CPU core.

    python jobs/builtin/pretrain_judge.py --config jobs/configs/pretrain_judge.yaml --out FOLDER [--resume] [key=value
    ...]

Stage 1, perception: the vision tower learns what stands where and how degraded the image is, through throw-away heads.
Stage 2, language: questions and answers `<chain> score <label>` and `score <label>`, the perception loss going on.
Score labels are an overall impression (mean of the four true scores plus noise, the same for every dimension): the base
perceives and reasons, but has never seen the rubric. Scenes are drawn fresh for every step, from the seed and the step
number alone. FOLDER gets metrics.jsonl, checkpoint.pt (with --resume the run goes on from it) and judge/, a complete
folder with a model card.
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

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

import zr_ray  # noqa: F401  (torchvision shim before transformers)
from zr_ray.builtin.muon import Muon
from zr_ray.builtin.tiny_card import model_card
from zr_ray.builtin.tiny_evaluation import evaluate_tiny_judge
from zr_ray.builtin.tiny_judge import TinySize, build_tiny_judge
from zr_ray.builtin.tiny_language import BranchWriter, impression_label, language_loss, pack_rows
from zr_ray.builtin.tiny_perception import PerceptionHeads, patch_pixels, tower_features
from zr_ray.config.loader import dump_yaml, load_config, schema_help
from zr_ray.errors import CheckpointError, ZrRayError
from zr_ray.rubric import DIMENSIONS, ScoringFormat
from zr_ray.world import perception_targets, render, vocabulary
from zr_ray.world.sampling import Candidate, sample_group

STAGES = ("perception", "language")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Perception(_Section):
    """Stage 1."""

    steps: int = Field(1100, ge=0, description="optimizer steps")
    images: int = Field(64, ge=1, description="fresh scenes per step")
    lr: float = Field(3e-3, gt=0, description="Muon's peak learning rate: RMS of an element's update")


class Language(_Section):
    """Stage 2."""

    steps: int = Field(900, ge=0, description="optimizer steps")
    images: int = Field(32, ge=1, description="fresh scenes per step; each is asked in all four dimensions")
    direct: int = Field(
        2, ge=0, le=4, description="of the four dimensions, how many are also asked for a direct score, per image"
    )
    lr: float = Field(2e-3, gt=0, description="Muon's peak learning rate of the language model")
    tower_lr: float = Field(3e-4, ge=0, description="Muon's peak learning rate of the vision tower; 0 freezes it")
    perception_weight: float = Field(0.05, ge=0, description="weight of the perception loss in this stage")
    label_weight: float = Field(0.3, ge=0, description="weight of a score label against any other token")
    impression_noise: float = Field(0.75, ge=0, description="SD of the noise on an impression label, rubric points")


class Size(_Section):
    """The language model; the vision tower is the same in every size."""

    layers: int = Field(4, ge=1, description="decoder layers")
    width: int = Field(128, ge=32, description="hidden size")
    heads: int = Field(4, ge=1, description="query heads, of 32 dimensions each")
    kv_heads: int = Field(2, ge=1, description="key-value heads")
    mlp: int = Field(384, ge=32, description="width of the feed-forward part")


class PretrainConfig(_Section):
    """Config of jobs/builtin/pretrain_judge.py."""

    seed: int = Field(11, description="of weights and scenes")
    size: Size = Size()
    perception: Perception = Perception()
    language: Language = Language()
    embedding_lr: float = Field(
        2e-3, gt=0, description="AdamW's peak learning rate of embeddings, output layer, heads, biases and norms"
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled, both optimizers")
    log_steps: int = Field(20, ge=1, description="steps between lines")
    checkpoint_steps: int = Field(200, ge=1, description="steps between checkpoints")
    evaluation_groups: int = Field(
        250, ge=2, description="held-out prompts, four candidates each, for the final figures"
    )


def draw_scenes(seed: int, stage: str, step: int, images: int) -> list[Candidate]:
    """Fresh candidates of one step; a function of its arguments alone, so that a resumed run sees what an uninterrupted
    one would."""
    rng = np.random.default_rng((seed, STAGES.index(stage), step))
    groups = [sample_group(rng) for _ in range(-(-images // 4))]
    return [c for group in groups for c in group][:images]


def perception_batch(scenes: list[Candidate]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(patches [B, 64, 192], stacked perception targets)."""
    targets = [perception_targets(c.scene) for c in scenes]
    stacked = {name: torch.from_numpy(np.stack([t[name] for t in targets])) for name in targets[0]}
    return patch_pixels(np.stack([render(c.scene) for c in scenes])), stacked


class Pretraining:
    """Model, heads and the optimizers of the current stage, with the two losses."""

    def __init__(self, config: PretrainConfig, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        if not (folder / "config.json").is_file():
            build_tiny_judge(folder, vocabulary(), config.seed, TinySize(**config.size.model_dump()))
        self.config, self.folder = config, folder
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.writer = BranchWriter(self.tokenizer, ScoringFormat.load(folder))
        torch.manual_seed(config.seed)
        self.heads = PerceptionHeads(self.model.config.text_config.hidden_size)
        self.optimizers: list[torch.optim.Optimizer] = []

    def start(self, stage: str) -> None:
        """Fresh optimizers for a stage: Muon for weight matrices, AdamW for the rest; peak rates kept as `peak_lr`."""
        tower = self.model.model.visual
        groups: dict[str, list] = {"tower": [], "text": [], "rest": list(self.heads.parameters())}
        for name, p in self.model.named_parameters():
            p.requires_grad_(stage == "language" or name.startswith("model.visual"))
            if not p.requires_grad:
                continue
            matrix = p.ndim == 2 and not any(part in name for part in ("embed", "lm_head"))
            groups["rest" if not matrix else "tower" if name.startswith("model.visual") else "text"].append(p)
        stage_config = getattr(self.config, stage)
        rates = (
            {"tower": stage_config.lr}
            if stage == "perception"
            else {"text": stage_config.lr, "tower": stage_config.tower_lr}
        )
        if rates["tower"] == 0:
            tower.requires_grad_(False)
        matrices = [{"params": groups[name], "lr": rate} for name, rate in rates.items()]
        decay = self.config.weight_decay
        self.optimizers = [
            Muon(matrices, lr=stage_config.lr, weight_decay=decay),
            torch.optim.AdamW(
                [p for p in groups["rest"] if p.requires_grad],
                self.config.embedding_lr,
                (0.9, 0.98),
                weight_decay=decay,
            ),
        ]
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["peak_lr"] = group["lr"]

    def step(self, stage: str, step: int) -> dict[str, float]:
        """One optimizer step. Warm-up over 30 steps, then linear to zero."""
        stage_config = getattr(self.config, stage)
        scenes = draw_scenes(self.config.seed, stage, step, stage_config.images)
        patches, targets = perception_batch(scenes)
        merged, tap = tower_features(self.model.model.visual, patches)
        loss, accuracies = self.heads(merged, tap, targets)
        metrics = {"perception_loss": loss.detach(), **accuracies}
        if stage == "language":
            spoken, said = self._language(step, scenes, merged, tap)
            loss = spoken + stage_config.perception_weight * loss
            metrics |= said
        share = min(1.0, (step + 1) / 30) * (1 - step / stage_config.steps)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        loss.backward()
        parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return {name: float(value) for name, value in metrics.items()}

    def _language(self, step: int, scenes: list[Candidate], merged, tap):
        config, rng = self.config.language, np.random.default_rng((self.config.seed, 7, step))
        rows = []
        for scene in scenes:
            asked = [(d, False) for d in DIMENSIONS] + [
                (DIMENSIONS[i], True) for i in rng.permutation(4)[: config.direct]
            ]
            scores = [impression_label(rng, scene.truth, config.impression_noise) for _ in asked]
            rows.append(
                [self.writer.branch(scene, d, score, direct) for (d, direct), score in zip(asked, scores, strict=True)]
            )
        packed = pack_rows(self.writer.prefix, rows, self.model.config.image_token_id)
        return language_loss(self.model, packed, merged, tap, config.label_weight)

    def save(self, path: Path, stage: str, step: int) -> None:
        """Checkpoint after `step` steps of `stage`, written beside and renamed."""
        state = {
            "stage": stage,
            "step": step,
            "config": dump_yaml(self.config),
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> tuple[str, int]:
        """Restore a checkpoint of the same config; returns (stage, steps done). Raises CheckpointError."""
        if not path.is_file():
            raise CheckpointError(f"--resume needs {path}, which is not there; start without --resume")
        state = torch.load(path, weights_only=True)
        if state["config"] != dump_yaml(self.config):
            raise CheckpointError(
                f"{path} was made with another config; give the same config and overrides, or another --out"
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.start(state["stage"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["stage"], state["step"]


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
                    print(
                        f"{stage} {step + 1}/{steps}  {shown}  {pace:.2f} s/step  ETA of stage"
                        f" {pace * (steps - step - 1) / 60:.1f} min",
                        flush=True,
                    )
                if (step + 1) % config.checkpoint_steps == 0 or step + 1 == steps:
                    run.save(out / "checkpoint.pt", stage, step + 1)
    return time.monotonic() - begun


SHOWN = {
    "perception": ("perception_loss", "shape", "colour", "size", "floating", "shadow", "noise", "clutter"),
    "language": ("perception_loss", "shape", "chain_nll", "token_accuracy", "label_nll"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=schema_help(PretrainConfig)
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "pretrain_judge.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, metrics and the judge")
    parser.add_argument("--resume", action="store_true", help="go on from FOLDER/checkpoint.pt")
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
