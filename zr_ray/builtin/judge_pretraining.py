"""One pre-training run of the built-in judge: its configuration, its state, one step, its checkpoints. The loop is
`jobs/builtin/pretrain_judge.py`.

Everything random in step n is drawn from (seed, stage, n), so a run that was killed and resumed sees what it would have
seen.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from zr_ray.builtin.muon import Muon
from zr_ray.builtin.named_pools import named_pool
from zr_ray.builtin.tiny_examples import Example, generated_examples, rendered_examples, stacked_targets
from zr_ray.builtin.tiny_judge import TinySize, TowerSize, build_tiny_judge
from zr_ray.builtin.tiny_language import BranchWriter, impression_label, language_loss, pack_rows
from zr_ray.builtin.tiny_perception import PerceptionHeads, patch_pixels, tower_features
from zr_ray.config.loader import dump_yaml
from zr_ray.errors import CheckpointError
from zr_ray.rubric import DIMENSIONS, ScoringFormat
from zr_ray.world import vocabulary
from zr_ray.world.image_pool import ImagePool, load_pool

STAGES = ("perception", "language")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Perception(_Section):
    """Stage 1."""

    steps: int = Field(1100, ge=0, description="optimizer steps")
    images: int = Field(64, ge=1, description="images per step")
    lr: float = Field(3e-3, gt=0, description="Muon's peak learning rate: RMS of an element's update")


class Language(_Section):
    """Stage 2."""

    steps: int = Field(900, ge=0, description="optimizer steps")
    images: int = Field(32, ge=1, description="images per step; each is asked in all four dimensions")
    direct: int = Field(
        2, ge=0, le=4, description="of the four dimensions, how many are also asked for a direct score, per image"
    )
    lr: float = Field(2e-3, gt=0, description="Muon's peak learning rate of the language model")
    tower_lr: float = Field(3e-4, ge=0, description="Muon's peak learning rate of the vision tower; 0 freezes it")
    perception_weight: float = Field(0.05, ge=0, description="weight of the perception loss in this stage")
    label_weight: float = Field(0.3, ge=0, description="weight of a score label against any other token")
    impression_noise: float = Field(0.75, ge=0, description="SD of the noise on an impression label, rubric points")


class Size(_Section):
    """The language model."""

    layers: int = Field(4, ge=1, description="decoder layers")
    width: int = Field(128, ge=32, description="hidden size")
    heads: int = Field(4, ge=1, description="query heads, of 32 dimensions each")
    kv_heads: int = Field(2, ge=1, description="key-value heads")
    mlp: int = Field(384, ge=32, description="width of the feed-forward part")


class Tower(_Section):
    """The vision tower."""

    patch: int = Field(8, ge=2, description="pixels of a patch side")
    merge: int = Field(2, ge=1, description="patches of a visual token's side")
    depth: int = Field(3, ge=1, description="layers")
    width: int = Field(96, ge=16, description="hidden size")
    heads: int = Field(3, ge=1, description="attention heads")
    deepstack: bool = Field(True, description="layer 1 has a merger of its own into the language model")


class PretrainConfig(_Section):
    """Config of jobs/builtin/pretrain_judge.py."""

    seed: int = Field(11, description="of weights and scenes")
    size: Size = Size()
    tower: Tower = Tower()
    pool: str = Field("", description="pool of generated images (`named_pools.POOLS`); empty: rendered scenes only")
    generated_share: float = Field(0.6, ge=0, le=1, description="share of generated images in every step; needs a pool")
    pool_images: int = Field(0, ge=0, description="images of the pool that must be there at the start; 0: all of them")
    half: int = Field(-1, ge=-1, le=1, description="0 or 1: only that half of the prompts (`prompts.in_half`); -1: all")
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


MUON_LIMIT = 768
"""Longest side of a matrix that Muon updates; larger ones (a merger of 16 patches) would cost more than the rest of a
step."""


class Pretraining:
    """Model, heads and the optimizers of the current stage, with the two losses."""

    def __init__(self, config: PretrainConfig, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        if not (folder / "config.json").is_file():
            build_tiny_judge(
                folder,
                vocabulary(),
                config.seed,
                TinySize(**config.size.model_dump()),
                TowerSize(**config.tower.model_dump()),
            )
        self.config, self.folder = config, folder
        self.grid = TowerSize(**config.tower.model_dump()).grid
        self.pool: ImagePool | None = (
            load_pool(named_pool(config.pool), at_least=config.pool_images) if config.pool else None
        )
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
            matrix = (
                p.ndim == 2 and not any(part in name for part in ("embed", "lm_head")) and max(p.shape) <= MUON_LIMIT
            )
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
        examples = self.draw(stage, step, stage_config.images)
        patches = patch_pixels(np.stack([e.image for e in examples]), self.config.tower.patch, self.config.tower.merge)
        targets = stacked_targets(examples, self.grid)
        merged, tap = tower_features(self.model.model.visual, patches)
        loss, accuracies = self.heads(merged, tap, targets)
        metrics = {"perception_loss": loss.detach(), **accuracies}
        if stage == "language":
            spoken, said = self._language(step, examples, merged, tap)
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

    def draw(self, stage: str, step: int, images: int) -> list[Example]:
        """Examples of one step, a function of its arguments and the seed alone."""
        rng = np.random.default_rng((self.config.seed, STAGES.index(stage), step))
        generated = 0 if self.pool is None else round(images * self.config.generated_share)
        half = self.config.half
        found = rendered_examples(rng, images - generated, half)
        return found + (generated_examples(rng, self.pool, generated, half) if self.pool is not None else [])

    def _language(self, step: int, examples: list[Example], merged, tap):
        config, rng = self.config.language, np.random.default_rng((self.config.seed, 7, step))
        rows = []
        for example in examples:
            asked = [(d, False) for d in DIMENSIONS] + [
                (DIMENSIONS[i], True) for i in rng.permutation(4)[: config.direct]
            ]
            scores = [impression_label(rng, example.truth, config.impression_noise) for _ in asked]
            rows.append(
                [
                    self.writer.branch(example, d, score, direct)
                    for (d, direct), score in zip(asked, scores, strict=True)
                ]
            )
        packed = pack_rows(self.writer.prefix, rows, self.model.config.image_token_id, self.grid**2)
        return language_loss(self.model, packed, merged, tap, config.label_weight)

    def start_from(self, checkpoint: Path, tower: Path | None = None) -> None:
        """Model and heads of another run of one architecture; of a fit (`judge_fitting.py`) the averaged weights.

        Args: tower: vision tower and heads from this checkpoint instead. Two runs from one perception stage fit: with
        the tower of a fit the base judge's chains were as good at once as after its own 500 steps."""
        state = torch.load(checkpoint, weights_only=True)
        model, heads = state.get("averaged", state["model"]), state["heads"]
        if tower is not None:
            other = torch.load(tower, weights_only=True)
            seeing = other.get("averaged", other["model"])
            model = {name: seeing[name] if name.startswith("model.visual") else value for name, value in model.items()}
            heads = other["heads"]
        self.model.load_state_dict(model)
        self.heads.load_state_dict(heads)

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
