"""Language modeling rows for pre-training the tiny judge: one image, read once, with several questions and answers
behind it.

A row is the image's tokens, then branches of question + answer; a tree mask lets every branch see the image and itself
only, and positions continue the image's, so a branch equals a sequence of its own (tested).
Axes: R rows (images), L packed tokens, V visual tokens.
Left out on purpose: ragged images; every world image is 64 x 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zr_ray.builtin.tiny_perception import as_encoder_output
from zr_ray.rubric import DIMENSIONS, SCORE_BINS, ScoringFormat
from zr_ray.world.annotators import round_half

IGNORE = -100
"""Target of a position that predicts nothing."""


@dataclass(frozen=True)
class Branch:
    """One question with the answer to learn."""

    question: tuple[int, ...]
    """Tokens after the image, the start of the answer included."""
    answer: tuple[int, ...]
    """Tokens to predict, the end token included."""
    label: int
    """Index of the score label in `answer`."""


@dataclass(frozen=True)
class PackedRows:
    """Tensors of R rows."""

    input_ids: Tensor
    """[R, L] long."""
    position_ids: Tensor
    """[3, R, L] long."""
    attention_mask: Tensor
    """[R, 1, L, L] bool, True where a query may attend."""
    targets: Tensor
    """[R, L] long token to predict after each position, IGNORE where none."""
    is_label: Tensor
    """[R, L] bool, True where the target is a score label."""


def impression_label(rng: np.random.Generator, truth: dict[str, float], noise: float) -> float:
    """Label of an untrained eye: the mean of the four true scores plus noise, the same for every dimension (a halo),
    rounded to a bin."""
    return round_half(sum(truth.values()) / len(truth) + noise * rng.standard_normal())


class BranchWriter:
    """Examples to branches, through the judge's own chat template and scoring format."""

    def __init__(self, tokenizer, scoring: ScoringFormat) -> None:
        self.tokenizer, self.scoring = tokenizer, scoring
        self._questions: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.prefix: tuple[int, ...] = self._split("x", DIMENSIONS[0])[0]
        """Tokens up to the end of the image, one placeholder; the same for every question."""

    def _split(self, prompt: str, dimension: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if (prompt, dimension) not in self._questions:
            text = self.tokenizer.apply_chat_template(
                self.scoring.messages(prompt, dimension), tokenize=False, add_generation_prompt=True
            )
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            cut = ids.index(self.tokenizer.convert_tokens_to_ids("<|vision_end|>")) + 1
            self._questions[prompt, dimension] = tuple(ids[:cut]), tuple(ids[cut:])
        return self._questions[prompt, dimension]

    def question(self, prompt: str, dimension: str) -> tuple[int, ...]:
        """Tokens of a question after the image, the start of the answer included."""
        return self._split(prompt, dimension)[1]

    def branch(self, example, dimension: str, score: float, direct: bool) -> Branch:
        """`<chain> score <label> <end>`, or without the chain when `direct`. example: has `prompt` and `reasoning` per
        dimension."""
        chain = "" if direct else example.reasoning[dimension] + " "
        label = self.scoring.labels[SCORE_BINS.index(score)]
        answer = self.tokenizer.encode(f"{chain}{self.scoring.marker} {label}<|im_end|>", add_special_tokens=False)
        return Branch(self.question(example.prompt, dimension), tuple(answer), len(answer) - 2)

    def direct_question(self, prompt: str, dimension: str) -> Branch:
        """A question that ends with the marker, so that the next token is the score; the label is the first one, to be
        ignored."""
        marker = self.tokenizer.encode(self.scoring.direct_prefix + self.scoring.marker, add_special_tokens=False)
        (label,) = self.tokenizer.encode(self.scoring.labels[0], add_special_tokens=False)
        return Branch((*self.question(prompt, dimension), *marker), (label,), 0)


def pack_rows(
    prefix: Sequence[int], rows: Sequence[Sequence[Branch]], image_token: int, visual_tokens: int = 16
) -> PackedRows:
    """One row per image. prefix: tokens up to the end of the image with one placeholder. Rows are padded to the
    longest."""
    at = list(prefix).index(image_token)
    head = [*prefix[:at], *[image_token] * visual_tokens, *prefix[at + 1 :]]
    side = int(visual_tokens**0.5)
    grid = torch.arange(side)
    places = torch.stack([torch.zeros(visual_tokens), grid.repeat_interleave(side), grid.repeat(side)]).long()
    after = at + side  # text positions go on behind the larger side of the image's grid
    text = torch.arange(len(prefix) - at - 1)
    head_positions = torch.cat([torch.arange(at).expand(3, -1), at + places, (after + text).expand(3, -1)], 1)
    width = len(head) + max(sum(len(b.question) + len(b.answer) - 1 for b in row) for row in rows)
    ids, targets, branch_of = (
        np.zeros((len(rows), width), int),
        np.full((len(rows), width), IGNORE),
        np.full((len(rows), width), -1),
    )
    positions, is_label = np.zeros((3, len(rows), width), int), np.zeros((len(rows), width), bool)
    for r, row in enumerate(rows):
        ids[r, : len(head)], branch_of[r, : len(head)], positions[:, r, : len(head)] = head, 0, head_positions
        cursor, start = len(head), after + len(text)
        for number, branch in enumerate(row, start=1):
            body = [*branch.question, *branch.answer[:-1]]
            end, first = cursor + len(body), cursor + len(branch.question) - 1
            ids[r, cursor:end], branch_of[r, cursor:end] = body, number
            positions[:, r, cursor:end] = start + np.arange(len(body))
            targets[r, first:end] = branch.answer
            is_label[r, first + branch.label] = True
            cursor = end
    of = torch.from_numpy(branch_of)
    query, key = of[:, :, None], of[:, None, :]
    allowed = torch.ones(width, width, dtype=torch.bool).tril() & (key >= 0) & ((query == key) | (key == 0))
    mask = (allowed | torch.eye(width, dtype=torch.bool)).unsqueeze(1)
    return PackedRows(
        torch.from_numpy(ids), torch.from_numpy(positions), mask, torch.from_numpy(targets), torch.from_numpy(is_label)
    )


def hidden_states(model, packed: PackedRows, merged: Tensor, tap: Tensor | None) -> Tensor:
    """[R, L, H] last hidden states. merged, tap: [R, V, H] visual features of each row."""
    return model.model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        mm_encoder_outputs=as_encoder_output(merged, tap),
        use_cache=False,
    ).last_hidden_state


def language_loss(
    model, packed: PackedRows, merged: Tensor, tap: Tensor | None, label_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of the answers, score labels weighted by label_weight. merged, tap: [R, V, H] visual features
    of each row."""
    hidden = hidden_states(model, packed, merged, tap)
    used = packed.targets != IGNORE
    logits, targets, is_label = model.lm_head(hidden[used]), packed.targets[used], packed.is_label[used]
    errors = F.cross_entropy(logits, targets, reduction="none")
    weights = torch.where(is_label, label_weight, 1.0)
    right = (logits.argmax(-1) == targets)[~is_label].float().mean()
    metrics = {
        "chain_nll": errors[~is_label].mean().detach(),
        "label_nll": errors[is_label].mean().detach(),
        "token_accuracy": right,
    }
    return (errors * weights).sum() / weights.sum(), metrics
