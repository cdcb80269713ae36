"""A judge on the transformers side: text and pixels in, log-probs of sampled outputs and of the nine labels out.

Axes: R rows (one image and question each), G completions a row, L packed tokens a row, P prompt tokens, T completion tokens,
N = sum of completions, K = 9 bins, V vocabulary.

One row holds the prompt once and its G completions behind it; a tree mask lets completion i see the prompt and itself only, and
its positions continue the prompt's. So image and prompt are computed once for G samples, and the result equals G separate
sequences (tested to 1e-5). Models with recurrent (linear-attention) layers cannot branch; for them a row is unrolled into G
sequences that share one computation of the image features.
Left out on purpose: generation; that is the rollout worker's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zr_ray.errors import JudgeError
from zr_ray.rubric import ScoringFormat, label_token_ids

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUILTIN_JUDGES = {"builtin": _ASSETS / "judge", "small": _ASSETS / "judge_small", "student": _ASSETS / "student"}
"""Judges inside the package: the base judge, a smaller one of the same making, and the student that was distilled from it."""


def judge_folder(path: str) -> Path:
    """Folder of a judge: a name of BUILTIN_JUDGES, or a Hugging Face folder. Raises JudgeError if there is no model in it."""
    folder = BUILTIN_JUDGES.get(path) or Path(path).expanduser()
    if not (folder / "config.json").is_file():
        names = ", ".join(BUILTIN_JUDGES)
        raise JudgeError(f"judge.path must be one of {names}, or a Hugging Face model folder with config.json, got {path!r}: no {folder / 'config.json'}")
    return folder.resolve()


class JudgeText:
    """Tokenizer side of a judge: questions to token ids, outputs to text, which tokens are labels and which are forbidden."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.folder = Path(folder)
        self.format = ScoringFormat.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        self.vocab_size: int = config.get_text_config().vocab_size
        self.image_token_id: int = config.image_token_id
        self.label_ids: tuple[int, ...] = label_token_ids(self.tokenizer, self.format.labels)
        self.end_id: int = self._end_token(config)
        self.forbidden_ids: tuple[int, ...] = self._forbidden(config)
        self.marker_ids: tuple[int, ...] = tuple(self.tokenizer.encode(self.format.marker, add_special_tokens=False))
        self._marker = self.format.marker.strip()
        self._questions: dict[tuple[str, str, bool], np.ndarray] = {}

    def _end_token(self, config) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise JudgeError(f"the tokenizer in {self.folder} has no end-of-sequence token; set eos_token in tokenizer_config.json")
        return end

    def _forbidden(self, config) -> tuple[int, ...]:
        """Image, video and special tokens, and embedding rows without a token: a sampled one would break the next forward."""
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special} | set(self.tokenizer.all_special_ids)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            if getattr(config, name, None) is not None:
                special.add(getattr(config, name))
        special |= set(range(len(self.tokenizer), self.vocab_size))
        return tuple(sorted(special - {self.end_id} - set(self.label_ids)))

    def question(self, prompt: str, dimension: str, direct: bool = False) -> np.ndarray:
        """[P] int32 chat-formatted question with one image placeholder; with `direct` the marker is already written, so that the
        next token is the score. Raises JudgeError if the chat template puts none or several placeholders."""
        key = (prompt, dimension, direct)
        if key not in self._questions:
            text = self.tokenizer.apply_chat_template(self.format.messages(prompt, dimension), tokenize=False, add_generation_prompt=True)
            if direct:
                text += self.format.direct_prefix + self.format.marker
            ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
            placeholders = int((ids == self.image_token_id).sum())
            if placeholders != 1:
                raise JudgeError(f"the chat template of {self.folder} must put exactly one image placeholder, got {placeholders}")
            self._questions[key] = ids
        return self._questions[key]

    def forget(self) -> None:
        """Drop the cached questions."""
        self._questions.clear()

    def answer(self, bin_index: int, reasoning: str | None = None) -> tuple[np.ndarray, int]:
        """([T] int32 tokens, score index) of a written answer: reasoning, marker, label and end; without reasoning the label alone,
        for a direct question that already ends with the marker."""
        label = self.label_ids[bin_index]
        if reasoning is None:
            return np.asarray([label], dtype=np.int32), 0
        body = [*self.tokenizer.encode(f"{reasoning}\n", add_special_tokens=False), *self.marker_ids]
        return np.asarray([*body, label, self.end_id], dtype=np.int32), len(body)

    def score_index(self, token_ids: Sequence[int]) -> int | None:
        """Position of the score token: the last label token right behind the marker; None if there is none (malformed output)."""
        labels = set(self.label_ids)
        ids = [int(t) for t in token_ids]
        for i in range(len(ids) - 1, -1, -1):
            if ids[i] in labels and self.tokenizer.decode(ids[:i]).rstrip().endswith(self._marker):
                return i
        return None

    def reasoning(self, token_ids: Sequence[int], score_index: int | None) -> str:
        """The reasoning text before the marker, for reports."""
        ids = [int(t) for t in token_ids]
        text = self.tokenizer.decode(ids[:score_index] if score_index is not None else ids, skip_special_tokens=True).strip()
        return text.removesuffix(self._marker).strip() if score_index is not None else text


@dataclass(frozen=True)
class Row:
    """One question with its sampled completions, ready for a forward pass."""

    question: np.ndarray
    """[P] int32 with one image placeholder."""
    image: np.ndarray
    """[H, W, 3] uint8."""
    completions: tuple[np.ndarray, ...]
    """G arrays of [T_i] int32, T_i >= 1."""
    score_indices: tuple[int | None, ...]
    """Per completion the position of its score token; None when malformed."""


@dataclass(frozen=True)
class PackedBatch:
    """Tensors of R packed rows."""

    input_ids: Tensor
    """[R, L] long, padded with 0."""
    position_ids: Tensor
    """[3, R, L] long multimodal rotary positions."""
    attention_mask: Tensor
    """[R, 1, L, L] bool tree mask (True = may attend), or [R, L] long for unrolled rows."""
    pixel_values: Tensor
    image_grid: Tensor
    """[images, 3] long (t, h, w) in patches."""
    image_index: Tensor
    """[R] long: image of each row; several unrolled rows share one."""
    token_source: Tensor
    """[sum T] long index into the flattened [R * L] hidden states whose prediction is each completion token."""
    token_ids: Tensor
    """[sum T] long the completion tokens, completion after completion."""
    lengths: Tensor
    """[N] long T_i."""
    score_position: Tensor
    """[N] long index into the sum-T axis of each completion's score token; -1 when malformed."""

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**{name: value.to(device) for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class JudgeOutputs:
    """What a forward over packed rows gives; completions padded to a rectangle."""

    logprobs: Tensor
    """[N, T] log-prob of each sampled token over the allowed vocabulary, 0 at padding."""
    mask: Tensor
    """[N, T] bool, True at real tokens."""
    score_logprobs: Tensor
    """[N, K] log-probs of the nine labels at the score position; uniform -log K where malformed (never to be used)."""
    valid: Tensor
    """[N] bool, False where malformed."""
    score_index: Tensor
    """[N] long position of the score token on the T axis; -1 where malformed."""


class RowPacker:
    """Builds PackedBatch from rows with the judge's own image processor and rotary positions. No weights needed beyond the config."""

    def __init__(self, folder: Path, model) -> None:
        from transformers import AutoImageProcessor

        self.image_processor = AutoImageProcessor.from_pretrained(folder)
        self.image_token_id = model.config.image_token_id
        self.merge = model.config.vision_config.spatial_merge_size
        self._rope_index = model.model.get_rope_index
        self.branching = not has_recurrent_layers(model.config.get_text_config())

    def pixels(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(pixel_values [patches, C], grid [images, 3]) of uint8 RGB images."""
        features = self.image_processor(images=[np.ascontiguousarray(i) for i in images], return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def length(self, row: Row, image_tokens: int) -> int:
        """Tokens of the longest sequence that `row` becomes, for micro-batching by tokens."""
        prompt = len(row.question) - 1 + image_tokens
        bodies = [len(c) - 1 for c in row.completions]
        return prompt + (sum(bodies) if self.branching else max(bodies))

    def sequences(self, row: Row) -> int:
        """Sequences that `row` becomes: rows of the packed rectangle."""
        return 1 if self.branching else len(row.completions)

    def image_tokens(self, image: np.ndarray) -> int:
        """Number of language-model tokens the processor makes of an image."""
        patches = self.image_processor.get_number_of_image_patches(image.shape[0], image.shape[1], {})
        return int(patches) // self.merge**2

    def pack(self, rows: Sequence[Row]) -> PackedBatch:
        """Pack rows into one rectangle; see the module's first lines for the layout."""
        pixel_values, grid = self.pixels([row.image for row in rows])
        tokens_per_image = (grid.prod(-1) // self.merge**2).tolist()
        sequences: list[tuple[int, np.ndarray, list[int]]] = []  # image, prompt, indices of completions that branch from it
        completions = [c for row in rows for c in row.completions]
        first = 0
        for image, row in enumerate(rows):
            prompt = expand_image(row.question, self.image_token_id, tokens_per_image[image])
            own = list(range(first, first + len(row.completions)))
            sequences += [(image, prompt, own)] if self.branching else [(image, prompt, [i]) for i in own]
            first += len(own)
        width = max(len(p) + sum(len(completions[i]) - 1 for i in own) for _, p, own in sequences)
        count = len(sequences)
        ids = torch.zeros(count, width, dtype=torch.long)
        positions = torch.zeros(3, count, width, dtype=torch.long)
        branch = torch.full((count, width), -1, dtype=torch.long)  # -1 padding, 0 prompt, 1.. completions
        sources: list[Tensor] = [torch.empty(0)] * len(completions)
        for r, (image, prompt, own) in enumerate(sequences):
            prompt_ids = torch.from_numpy(prompt.astype(np.int64))
            length = len(prompt_ids)
            ids[r, :length], branch[r, :length] = prompt_ids, 0
            types = (prompt_ids == self.image_token_id).int()[None]
            rope, _ = self._rope_index(prompt_ids[None], mm_token_type_ids=types, image_grid_thw=grid[image : image + 1])
            positions[:, r, :length] = rope[:, 0]
            next_position, cursor = int(rope.max()) + 1, length
            for b, i in enumerate(own, start=1):
                body = torch.from_numpy(completions[i][:-1].astype(np.int64))
                end = cursor + len(body)
                ids[r, cursor:end], branch[r, cursor:end] = body, b
                positions[:, r, cursor:end] = next_position + torch.arange(len(body))
                sources[i] = r * width + torch.cat([torch.tensor([length - 1]), torch.arange(cursor, end)])
                cursor = end
        lengths = torch.tensor([len(c) for c in completions])
        starts = torch.cumsum(lengths, 0) - lengths
        score_indices = [s for row in rows for s in row.score_indices]
        return PackedBatch(
            input_ids=ids,
            position_ids=positions,
            attention_mask=tree_mask(branch) if self.branching else (branch >= 0).long(),
            pixel_values=pixel_values,
            image_grid=grid,
            image_index=torch.tensor([image for image, _, _ in sequences]),
            token_source=torch.cat(sources),
            token_ids=torch.from_numpy(np.concatenate(completions).astype(np.int64)),
            lengths=lengths,
            score_position=torch.tensor([-1 if s is None else int(starts[i]) + s for i, s in enumerate(score_indices)]),
        )


class PackedJudge(nn.Module):
    """A Hugging Face VLM with the forward that training needs; the unit DeepSpeed wraps.

    The policy is defined over the allowed vocabulary: forbidden tokens (image, video, special) have probability exactly 0 in the
    rollout engine and here, so both normalise over the same set.
    """

    PROJECTION_CHUNK = 4096  # positions projected to the vocabulary at a time; bounds logits memory to 4096 * V

    def __init__(self, model, text: JudgeText) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("label_ids", torch.tensor(text.label_ids), persistent=False)
        forbidden = torch.zeros(text.vocab_size, dtype=torch.bool)
        forbidden[list(text.forbidden_ids)] = True
        self.register_buffer("forbidden", forbidden, persistent=False)

    def forward(self, batch: PackedBatch, features=None) -> JudgeOutputs:
        """JudgeOutputs for every completion of the batch; differentiable with respect to the parameters.

        Args: features: what `image_features` of a judge with the same vision tower gave; None computes them here."""
        hidden = self._hidden(batch, self.image_features(batch) if features is None else features)
        token_logprobs, label_logprobs = self._project(hidden.flatten(0, 1)[batch.token_source], batch.token_ids)
        count, width = len(batch.lengths), int(batch.lengths.max())
        mask = torch.arange(width, device=hidden.device)[None] < batch.lengths[:, None]
        logprobs = token_logprobs.new_zeros(count, width).masked_scatter(mask, token_logprobs)
        valid = batch.score_position >= 0
        chosen = label_logprobs[batch.score_position.clamp_min(0)]
        neutral = torch.full_like(chosen, -float(np.log(chosen.shape[-1])))
        score_index = torch.where(valid, batch.score_position - (batch.lengths.cumsum(0) - batch.lengths), -1)
        return JudgeOutputs(logprobs, mask, torch.where(valid[:, None], chosen, neutral), valid, score_index)

    @property
    def tower_is_frozen(self) -> bool:
        """Whether no parameter of the vision tower is trained."""
        return not any(p.requires_grad for p in self.model.model.visual.parameters())

    def image_features(self, batch: PackedBatch):
        """The vision tower's output for the batch's images, once per image, as the Hugging Face model takes it; the packed rows' order."""
        core = self.model.model
        frozen = not batch.pixel_values.requires_grad and self.tower_is_frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = core.get_image_features(batch.pixel_values, batch.image_grid, return_dict=True)
        repeats = batch.image_index.tolist()
        if repeats != list(range(len(features.pooler_output))):
            features.pooler_output = [features.pooler_output[i] for i in repeats]
            if getattr(features, "deepstack_features", None) is not None:
                features.deepstack_features = [[layer[i] for i in repeats] for layer in features.deepstack_features]
        return features

    def _hidden(self, batch: PackedBatch, features) -> Tensor:
        """[R, L, H] last hidden states."""
        core = self.model.model
        output = core(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            mm_encoder_outputs={"image": features},
            use_cache=False,
        )
        return output.last_hidden_state

    def _project(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """([sum T] log-probs of token_ids, [sum T, K] log-probs of the labels), only at the positions needed."""
        if len(hidden) <= self.PROJECTION_CHUNK:
            return self._project_chunk(hidden, token_ids)
        parts = [
            checkpoint(self._project_chunk, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(self.PROJECTION_CHUNK), token_ids.split(self.PROJECTION_CHUNK), strict=True)
        ]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def _project_chunk(self, hidden: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.lm_head(hidden).float().masked_fill(self.forbidden, -torch.inf)
        total = torch.logsumexp(logits, dim=-1)
        return logits.gather(-1, token_ids[:, None]).squeeze(-1) - total, logits[:, self.label_ids] - total[:, None]


def load_packed_judge(folder: Path, dtype: torch.dtype) -> tuple[PackedJudge, JudgeText, RowPacker]:
    """Load a judge folder for training. Raises JudgeError if it is not an image-text-to-text model."""
    from transformers import AutoModelForImageTextToText

    text = JudgeText(folder)
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    except (ValueError, OSError) as error:
        raise JudgeError(f"{folder} must hold an image-text-to-text model with safetensors weights: {error}") from error
    return PackedJudge(model, text), text, RowPacker(folder, model)


def expand_image(question: np.ndarray, image_token_id: int, image_tokens: int) -> np.ndarray:
    """The question with its one placeholder repeated `image_tokens` times."""
    at = int(np.flatnonzero(question == image_token_id)[0])
    return np.concatenate([question[:at], np.full(image_tokens, image_token_id, question.dtype), question[at + 1 :]])


def tree_mask(branch: Tensor) -> Tensor:
    """[R, 1, L, L] bool: causal, and query branch = key branch or key is prompt; padding sees itself only (keeps softmax finite)."""
    width = branch.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    query, key = branch[:, :, None], branch[:, None, :]
    allowed = causal & (key >= 0) & (query >= 0) & ((query == key) | (key == 0))
    return (allowed | torch.eye(width, dtype=torch.bool)).unsqueeze(1)


def has_recurrent_layers(text_config) -> bool:
    return any("linear" in kind or "recurrent" in kind for kind in getattr(text_config, "layer_types", None) or [])
