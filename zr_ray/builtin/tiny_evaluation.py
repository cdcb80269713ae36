"""How well the tiny judge perceives, reasons and scores on held-out scenes, with plain transformers generation.

Left out on purpose: intervals and the noise ceiling; `loops/evaluate.py` reports those, for any judge.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from zr_ray.builtin.tiny_language import BranchWriter
from zr_ray.builtin.tiny_perception import as_encoder_output, patch_pixels, tower_features
from zr_ray.data.pairs import aggregate_scores
from zr_ray.functional.pairs import human_pair_accuracy
from zr_ray.rubric import DIMENSIONS, SCORE_BINS, label_token_ids
from zr_ray.world.annotators import AnnotatorPool
from zr_ray.world.render import render
from zr_ray.world.sampling import Candidate, sample_group


def held_out_groups(seed: int, groups: int) -> tuple[list[list[Candidate]], list[list[dict[str, float]]]]:
    """(candidates per group, aggregated score of five simulated annotators per candidate and dimension)."""
    rng, pool = np.random.default_rng((seed, 0xE7A1)), AnnotatorPool(seed)
    scenes = [sample_group(rng) for _ in range(groups)]
    rated = [pool.test_scores(rng, [c.truth for c in group]) for group in scenes]
    return scenes, [[{d: aggregate_scores(item[d]) for d in DIMENSIONS} for item in group] for group in rated]


@torch.no_grad()
def evaluate_tiny_judge(
    model, tokenizer, writer: BranchWriter, seed: int, groups: int, max_tokens: int = 28
) -> dict[str, float]:
    """Per dimension and pooled: HPA with and without reasoning, exact-chain rate, well-formed rate, entropy of the
    score (nats).

    Greedy reasoning; the score is the expectation over the nine labels. Answers that do not end `score <label> <end>`
    are malformed; they get the middle of the scale. `direct_labels` is the mass on the nine labels right behind the
    marker.
    """
    scenes, human = held_out_groups(seed, groups)
    flat = [c for group in scenes for c in group]
    merged, tap = _features(model, flat)
    group = torch.arange(groups).repeat_interleave(len(scenes[0]))
    result: dict[str, float] = {}
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for dimension in DIMENSIONS:
        labels = torch.tensor([item[dimension] for items in human for item in items])
        for mode in ("direct", "reasoning"):
            read = _answers(model, tokenizer, writer, flat, dimension, merged, tap, mode == "direct", max_tokens)
            correct, total = human_pair_accuracy(read["score"], labels, group)
            result[f"{mode}/hpa_{dimension}"] = correct / total if total else float("nan")
            sums[mode][0] += correct
            sums[mode][1] += total
            for name in ("entropy", "formed", "exact", "tokens"):
                if name in read:
                    result[f"{mode}/{name}_{dimension}"] = read[name].float().mean().item()
    for mode, (correct, total) in sums.items():
        result[f"{mode}/hpa"] = correct / total if total else float("nan")
    return result


def _features(model, candidates: list[Candidate]) -> tuple[Tensor, Tensor | None]:
    """Visual tokens and deepstack tap (None in a tower without one) of every candidate, [N, V, H]."""
    vision = model.config.vision_config
    parts = [
        tower_features(
            model.model.visual,
            patch_pixels(np.stack([render(c.scene) for c in chunk]), vision.patch_size, vision.spatial_merge_size),
        )
        for chunk in _chunks(candidates, 128)
    ]
    tap = torch.cat([tap for _, tap in parts]) if parts[0][1] is not None else None
    return torch.cat([merged for merged, _ in parts]), tap


def _answers(model, tokenizer, writer, candidates, dimension, merged, tap, direct, max_tokens) -> dict[str, Tensor]:
    """Per candidate: score, entropy, formed, and for reasoning exact and tokens. Questions of one length go together,
    so none is padded."""
    marker = tokenizer.encode(writer.scoring.marker, add_special_tokens=False)
    label_ids = torch.tensor(label_token_ids(tokenizer, writer.scoring.labels))
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    by_length: dict[int, list[int]] = defaultdict(list)
    questions = [
        [*writer.prefix, *writer.question(c.prompt, dimension), *(marker if direct else [])] for c in candidates
    ]
    for i, question in enumerate(questions):
        by_length[len(question)].append(i)
    found: dict[str, Tensor] = {
        name: torch.zeros(len(candidates)) for name in ("score", "entropy", "formed", "exact", "tokens")
    }
    for members in (chunk for same in by_length.values() for chunk in _chunks(same, 256)):
        ids = torch.tensor(
            [
                [t for token in questions[i] for t in ([image] * merged.shape[1] if token == image else [token])]
                for i in members
            ]
        )
        if direct:
            logits = _generate(model, ids, merged[members], tap[members] if tap is not None else None, image, 1)[1][0]
            probabilities = logits.softmax(-1)
            found["formed"][members] = probabilities[:, label_ids].sum(-1)
            _read_scores(found, members, logits[:, label_ids].log_softmax(-1))
            continue
        tokens, logits = _generate(
            model, ids, merged[members], tap[members] if tap is not None else None, image, max_tokens
        )
        for row, i in enumerate(members):
            answer = tokens[row].tolist()
            end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else -1
            formed = end >= 2 and answer[end - 1] in label_ids.tolist() and answer[end - 2 : end - 1] == marker
            found["formed"][i], found["tokens"][i] = formed, end + 1 if end >= 0 else max_tokens
            found["exact"][i] = tokenizer.decode(answer[: max(end - 2, 0)]) == candidates[i].reasoning[dimension]
            scores = logits[end - 1][row, label_ids] if formed else torch.zeros(len(label_ids))
            _read_scores(found, [i], scores.log_softmax(-1)[None])
    return {k: v for k, v in found.items() if not (direct and k in ("exact", "tokens"))}


def _read_scores(found: dict[str, Tensor], members: list[int], logprobs: Tensor) -> None:
    found["score"][members] = logprobs.exp() @ torch.tensor(SCORE_BINS)
    found["entropy"][members] = -(logprobs.exp() * logprobs).sum(-1)


def _generate(model, ids: Tensor, merged: Tensor, tap: Tensor, image: int, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Greedy decoding with a cache: ([R, steps] tokens, per step [R, vocabulary] logits)."""
    types = (ids == image).int()
    side = round(merged.shape[1] ** 0.5) * model.config.vision_config.spatial_merge_size
    grid = torch.tensor([[1, side, side]]).expand(len(ids), -1)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grid)
    output = model.model(
        input_ids=ids, position_ids=positions, mm_encoder_outputs=as_encoder_output(merged, tap), use_cache=True
    )
    tokens, logits = [], []
    for step in range(steps):
        logits.append(model.lm_head(output.last_hidden_state[:, -1]))
        tokens.append(logits[-1].argmax(-1))
        if step + 1 < steps:
            positions = positions[:, :, -1:].amax(0, keepdim=True).expand(3, -1, -1) + 1
            output = model.model(
                input_ids=tokens[-1][:, None],
                position_ids=positions,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    return torch.stack(tokens, 1), logits


def _chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]
