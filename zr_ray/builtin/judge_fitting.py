"""A judge fitted directly to the verifier's scores of generated images, one token an answer: configuration, state, one
step.

The upper row of the student table, not the product: it needs a verifier, which no real generator has. Each image is
asked in four dimensions under its own prompt, and in alignment under edited prompts (`prompts.edited`), whose scores
the verifier's reading gives. Everything random in step n is drawn from (seed, n).
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from zr_ray.builtin.judge_pretraining import MUON_LIMIT
from zr_ray.builtin.muon import Muon
from zr_ray.builtin.named_pools import named_pool
from zr_ray.builtin.tiny_examples import Example, generated_examples, rendered_examples, stacked_targets, with_edit
from zr_ray.builtin.tiny_language import IGNORE, Branch, BranchWriter, hidden_states, pack_rows
from zr_ray.builtin.tiny_perception import PerceptionHeads, patch_pixels, tower_features
from zr_ray.errors import CheckpointError
from zr_ray.functional.within_prompt import best_of, pair_accuracy, spread
from zr_ray.rubric import DIMENSIONS, SCORE_BINS, ScoringFormat, label_token_ids
from zr_ray.world.image_pool import ImagePool, load_pool


class FitConfig(BaseModel):
    """Configuration of jobs/builtin/fit_judge.py."""

    model_config = ConfigDict(extra="forbid")
    seed: int = Field(21, description="of images, edits and, where weights are fresh, weights")
    pools: list[str] = Field(["train"], description="pools of generated images (`named_pools.POOLS`)")
    pool_images: int = Field(
        0,
        ge=0,
        description="images of each pool that must be there at the start, shards made later are taken in; 0: all",
    )
    half: int = Field(-1, ge=-1, le=1, description="0 or 1: only that half of the prompts (`prompts.in_half`); -1: all")
    generated: int = Field(32, ge=1, description="generated images per step")
    rendered: int = Field(8, ge=0, description="rendered scenes per step")
    edits: int = Field(2, ge=0, description="edited prompts per image, alignment only")
    label_width: float = Field(
        0.3, gt=0, description="standard deviation of the soft label around a score, rubric points"
    )
    perception_weight: float = Field(0.05, ge=0, description="weight of the perception loss; 0 leaves it out")
    text_lr: float = Field(1.5e-3, gt=0, description="Muon's peak learning rate of the language model")
    tower_lr: float = Field(8e-4, ge=0, description="Muon's peak learning rate of the vision tower")
    other_lr: float = Field(1.5e-3, gt=0, description="AdamW's peak learning rate of everything else")
    weight_decay: float = Field(0.02, ge=0, description="decoupled, both optimizers")
    warmup_steps: int = Field(50, ge=1, description="linear warm-up")
    decay_from: float = Field(
        0.5, ge=0, lt=1, description="share of the minutes after which the rates fall, linearly, to 2 % of the peak"
    )
    ema_decay: float = Field(
        0.998, ge=0, lt=1, description="of the averaged weights, which are what is measured and saved"
    )
    minutes: float = Field(60.0, gt=0, description="of training")
    watch_minutes: float = Field(
        4.0, gt=0, description="between measurements on the dev pool, each with a checkpoint and a judge folder"
    )


def soft_labels(scores: Tensor, width: float) -> Tensor:
    """[N, K] Gaussian around each score, on the bins, normalized. scores: [N] rubric points."""
    return (-((scores[:, None] - torch.tensor(SCORE_BINS)) ** 2) / (2 * width**2)).softmax(-1)


class JudgeFitting:
    """Owns the model, its averaged copy, perception heads and optimizers."""

    def __init__(self, config: FitConfig, folder: Path) -> None:
        """folder: a judge folder to start from; beside it, `perception.pt` of a pre-training gives tower and heads if
        it is there."""
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.config, self.folder, self.steps, self.trained_s = config, Path(folder), 0, 0.0
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        vision = self.model.config.vision_config
        self.patch, self.merge = vision.patch_size, vision.spatial_merge_size
        self.grid = 64 // (self.patch * self.merge)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        scoring = ScoringFormat.load(folder)
        self.writer = BranchWriter(self.tokenizer, scoring)
        self.labels = torch.tensor(label_token_ids(self.tokenizer, scoring.labels))
        torch.manual_seed(config.seed)
        self.heads = PerceptionHeads(self.model.config.text_config.hidden_size)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.pools = self._load_pools()
        self.optimizers = self._build_optimizers()

    def _load_pools(self) -> list[ImagePool]:
        return [load_pool(named_pool(name), at_least=self.config.pool_images) for name in self.config.pools]

    def refresh_pools(self) -> int:
        """Take in shards that were made since; returns the number of images."""
        self.pools = self._load_pools()
        return sum(map(len, self.pools))

    def start_from(self, checkpoint: Path) -> None:
        """Model and heads of a pre-training checkpoint, or the averaged model and the heads of another fit's."""
        state = torch.load(checkpoint, weights_only=True)
        self.model.load_state_dict(state.get("averaged", state["model"]))
        self.heads.load_state_dict(state["heads"])
        self.averaged.load_state_dict(self.model.state_dict())

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        groups: dict[str, list] = {"tower": [], "text": [], "rest": list(self.heads.parameters())}
        for name, p in self.model.named_parameters():
            matrix = (
                p.ndim == 2 and max(p.shape) <= MUON_LIMIT and not any(part in name for part in ("embed", "lm_head"))
            )
            groups["rest" if not matrix else "tower" if name.startswith("model.visual") else "text"].append(p)
        matrices = [
            {"params": groups["text"], "lr": config.text_lr},
            {"params": groups["tower"], "lr": config.tower_lr},
        ]
        found = [
            Muon(matrices, lr=config.text_lr, weight_decay=config.weight_decay),
            torch.optim.AdamW(groups["rest"], config.other_lr, (0.9, 0.98), weight_decay=config.weight_decay),
        ]
        for group in (g for o in found for g in o.param_groups):
            group["peak_lr"] = group["lr"]
        return found

    # ---- one step ----

    def draw(self, step: int) -> list[Example]:
        rng = np.random.default_rng((self.config.seed, 0xF17, step))
        share = rng.multinomial(
            self.config.generated, np.array([len(p) for p in self.pools]) / sum(map(len, self.pools))
        )
        found = [
            e
            for pool, count in zip(self.pools, share, strict=True)
            for e in generated_examples(rng, pool, int(count), self.config.half)
        ]
        return found + rendered_examples(rng, self.config.rendered, self.config.half)

    def questions(self, step: int, examples: list[Example]) -> tuple[list[list[Branch]], Tensor]:
        """(branches per image, [N] score of every branch in order)."""
        rng, rows, scores = np.random.default_rng((self.config.seed, 0xED17, step)), [], []
        for example in examples:
            row = [self.writer.direct_question(example.prompt, d) for d in DIMENSIONS]
            scores += [example.truth[d] for d in DIMENSIONS]
            for _ in range(self.config.edits):
                request, score = with_edit(rng, example, self.config.half)
                row.append(self.writer.direct_question(request.prompt, "alignment"))
                scores.append(score)
            rows.append(row)
        return rows, torch.tensor(scores, dtype=torch.float32)

    def features(self, model, images: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return tower_features(model.model.visual, patch_pixels(images, self.patch, self.merge))

    def log_distributions(self, model, rows: list[list[Branch]], merged: Tensor, tap: Tensor | None) -> Tensor:
        """[N, K] log-probs of the nine labels, over the whole vocabulary."""
        packed = pack_rows(self.writer.prefix, rows, model.config.image_token_id, self.grid**2)
        hidden = hidden_states(model, packed, merged, tap)
        return model.lm_head(hidden[packed.targets != IGNORE]).log_softmax(-1)[:, self.labels]

    def step(self, progress: float) -> dict[str, float]:
        """One optimizer step. progress: share of the minutes that has passed.   Returns: its losses."""
        config = self.config
        examples = self.draw(self.steps)
        rows, scores = self.questions(self.steps, examples)
        merged, tap = self.features(self.model, np.stack([e.image for e in examples]))
        logq = self.log_distributions(self.model, rows, merged, tap)
        loss = F.kl_div(logq, soft_labels(scores, config.label_width), reduction="batchmean")
        metrics = {
            "kl": loss.detach(),
            "error": ((logq.exp() @ torch.tensor(SCORE_BINS)).detach() - scores).abs().mean(),
        }
        if config.perception_weight:
            seen, _ = self.heads(merged, tap, stacked_targets(examples, self.grid))
            metrics["perception"] = seen.detach()
            loss = loss + config.perception_weight * seen
        falling = min(1.0, (1 - progress) / (1 - config.decay_from))
        factor = min(1.0, (self.steps + 1) / config.warmup_steps) * max(0.02, falling)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for o in self.optimizers for g in o.param_groups for p in g["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        decay = min(config.ema_decay, self.steps / (self.steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        return {name: float(value) for name, value in metrics.items()}

    # ---- measuring and keeping ----

    @torch.no_grad()
    def mu(self, images: np.ndarray, prompts: list[str], batch: int = 64) -> Tensor:
        """[N, D] expected scores by the averaged weights."""
        parts = []
        for start in range(0, len(prompts), batch):
            rows = [[self.writer.direct_question(p, d) for d in DIMENSIONS] for p in prompts[start : start + batch]]
            logq = self.log_distributions(
                self.averaged, rows, *self.features(self.averaged, np.asarray(images[start : start + batch]))
            )
            parts.append((logq.softmax(-1) @ torch.tensor(SCORE_BINS)).view(-1, len(DIMENSIONS)))
        return torch.cat(parts)

    def watch(self, pool: ImagePool) -> dict[str, float]:
        """Pair accuracy inside a prompt, spread against the verifier's and best-of-n gain on a pool with the same
        number per prompt."""
        order = np.argsort(pool.prompt, kind="stable")
        shape = (len(pool.prompts), -1, len(DIMENSIONS))
        mu = self.mu(pool.images[order], [pool.prompts[i] for i in pool.prompt[order]]).view(shape).double()
        truth = torch.from_numpy(pool.scores[order]).view(shape)
        right, wide = pair_accuracy(truth, mu), spread(mu) / spread(truth)
        found = {f"pairs/{d}": float(right[i]) for i, d in enumerate(DIMENSIONS)} | {
            f"spread/{d}": float(wide[i]) for i, d in enumerate(DIMENSIONS)
        }
        found["dev_error"] = float((mu - truth).abs().mean())
        total, count = truth.sum(-1), truth.shape[1]
        mean = total.mean()
        found["best_of_n_gain"] = float(best_of(mu.sum(-1), total, count).mean() - mean)
        found["oracle_gain"] = float(best_of(total, total, count).mean() - mean)
        return found

    def save(self, path: Path) -> None:
        """Checkpoint, written beside and renamed."""
        state = {
            "steps": self.steps,
            "trained_s": self.trained_s,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises: CheckpointError if it is not there."""
        if not path.is_file():
            raise CheckpointError(f"--resume needs {path}, which is not there; start without --resume")
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):  # the rates of the config that goes on
                group["peak_lr"] = peak
        self.steps, self.trained_s = state["steps"], state["trained_s"]
