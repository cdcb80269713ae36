"""The student: images and prompts in, a score distribution per dimension out, in one forward pass (Z-Reward, arXiv
2606.09076, Eq. 16).

Image and prompt are computed once, the questions of the dimensions branch from them (`questions.py`); everything from
the float pixels on is torch and differentiable. Training uses the same packed forward (`PackedJudge`) through the
learner.
Left out on purpose: decoding of image files, batching across callers, devices; those are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zr_ray.functional.scores import expected_score, outside_mass, score_log_distribution
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.models.questions import QuestionPacker


@dataclass(frozen=True)
class StudentScores:
    """What the student says about B images in D' dimensions."""

    log_q: Tensor
    """[B, D', K] log of the score distributions, nats, over the bins only."""
    mu: Tensor
    """[B, D'] expected scores, rubric points (Eq. 16)."""
    outside: Tensor
    """[B, D'] probability the judge put on tokens that are no score label, in [0, 1]."""


class Student(nn.Module):
    """A judge folder as a differentiable function of pixels. In evaluation mode, parameters without gradient, until
    told otherwise."""

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """dtype: float32, bfloat16, or float64 for exact derivatives (slow).   Raises: JudgeError if the folder holds
        no judge."""
        super().__init__()
        self.judge, self.text, _ = load_packed_judge(Path(folder), dtype)
        self.preprocess = PixelPreprocessor.load(folder)
        self.questions = QuestionPacker(self.judge.model, self.text, self.preprocess)
        self.rubric = self.text.rubric
        self.register_buffer("bins", torch.tensor(self.rubric.bins, dtype=torch.float64), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, prompts: Sequence[str], dimensions: Sequence[str] | None = None) -> StudentScores:
        """Score distributions of B images of one size, differentiable with respect to the pixels (and to parameters
        that ask for it).

        Args: images: [B, 3, H, W] float in [0, 1], on the student's device. prompts: B texts. dimensions: D' >= 1 of
        the rubric's; None: all, in its order.
        Returns: StudentScores in the order of `dimensions`; an item's values do not depend on the rest of the batch.
        Raises: DataError for pixels of another kind, ValueError if prompts or dimensions do not fit."""
        dimensions = self.rubric.dimensions if dimensions is None else dimensions
        unknown = [d for d in dimensions if d not in self.rubric.dimensions]
        if unknown or not dimensions:
            raise ValueError(f"dimensions must name some of {self.rubric.dimensions}, got {list(dimensions)}")
        if len(prompts) != len(images):
            raise ValueError(f"every image needs one prompt, got {len(images)} images and {len(prompts)} prompts")
        double = self.judge.model.lm_head.weight.dtype == torch.float64
        with _KeepFloat64() if double else nullcontext():
            # pixels are prepared in float32 at least; the vision tower casts the patches to its own dtype
            pixel_values, grid = self.preprocess(
                images.double() if double else images.float() if images.is_floating_point() else images
            )
            rows, columns = self.preprocess.grid(*images.shape[-2:])
            layouts = [self.questions.layout(prompt, tuple(dimensions), (rows, columns)) for prompt in prompts]
            labels = self.judge(self.questions.batch(pixel_values, grid, layouts)).score_logprobs
            log_q = score_log_distribution(labels).view(len(prompts), len(dimensions), -1)
            mu = expected_score(log_q, self.bins)
            return StudentScores(log_q, mu, outside_mass(labels).view_as(mu))


class _KeepFloat64(TorchFunctionMode):
    """Casts of float64 tensors to float32 do nothing: transformers writes them into norms and rotary embeddings, and
    they would leave a float64 model with float32 noise that finite differences cannot see through."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.float, torch.Tensor.to) and args[0].dtype == torch.float64:
            wanted = [torch.float32] if func is torch.Tensor.float else [*args[1:], *kwargs.values()]
            if torch.float32 in [w for w in wanted if isinstance(w, torch.dtype)]:
                return args[0]
        return func(*args, **kwargs)
