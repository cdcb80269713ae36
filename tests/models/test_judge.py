"""The packed forward: branches equal separate sequences, masks and indices point where they should."""

import numpy as np
import pytest
import torch

from zr_ray.data.images import load_image
from zr_ray.errors import JudgeError
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.judge_text import judge_folder
from zr_ray.models.packing import Row


@pytest.fixture(scope="module")
def judge(judge_path):
    return load_packed_judge(judge_path, torch.float32)


@pytest.fixture(scope="module")
def rows(judge, world_items):
    """Three rows of four completions each, of different lengths, some without a score."""
    _, text, _ = judge
    rng = np.random.default_rng(3)
    words = [
        t
        for t in range(text.vocab_size)
        if t not in text.forbidden_ids and t not in text.label_ids and t != text.end_id
    ]
    made = []
    for n, item in enumerate(world_items[:3]):
        completions, indices = [], []
        for g in range(4):
            body = rng.choice(words, size=2 + n + 3 * g)
            if g == 3:
                completions.append(body.astype(np.int32))
                indices.append(None)
            else:
                completions.append(np.array([*body, *text.marker_ids, text.label_ids[g], text.end_id], np.int32))
                indices.append(len(body) + len(text.marker_ids))
        made.append(
            Row(text.question(item.prompt, "alignment"), load_image(item.image), tuple(completions), tuple(indices))
        )
    return made


def test_branches_equal_separate_sequences(judge, rows):
    module, _, packer = judge
    with torch.no_grad():
        together = module(packer.pack(rows))
        n = 0
        for row in rows:
            for completion, index in zip(row.completions, row.score_indices, strict=True):
                alone = module(packer.pack([Row(row.question, row.image, (completion,), (index,))]))
                length = len(completion)
                torch.testing.assert_close(
                    together.logprobs[n, :length], alone.logprobs[0], atol=1e-5, rtol=1e-6
                )  # random words reach -10 nats
                torch.testing.assert_close(together.score_logprobs[n], alone.score_logprobs[0], atol=1e-5, rtol=0)
                assert together.mask[n].sum() == length
                n += 1


def test_packed_forward_equals_the_plain_transformers_forward(judge, rows):
    """A reference that shares nothing with the packer: transformers' own processor-style call, full causal mask, its
    own positions."""
    module, text, packer = judge
    row = rows[1]
    pixel_values, grid = packer.pixels([row.image])
    image_tokens = int(grid.prod()) // packer.merge**2
    at = int(np.flatnonzero(row.question == text.image_token_id)[0])
    prompt = [*row.question[:at], *[text.image_token_id] * image_tokens, *row.question[at + 1 :]]
    ids = torch.tensor([[*prompt, *row.completions[0]]])
    with torch.no_grad():
        logits = module.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixel_values,
            image_grid_thw=grid,
            mm_token_type_ids=(ids == text.image_token_id).int(),
        ).logits[0, len(prompt) - 1 : -1]
        logits[:, list(text.forbidden_ids)] = -torch.inf
        expected = (
            logits.log_softmax(-1).gather(-1, torch.tensor(row.completions[0], dtype=torch.long)[:, None]).squeeze(-1)
        )
        got = module(packer.pack(rows)).logprobs[4, : len(expected)]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_unrolled_rows_equal_branches(judge, rows):
    module, _, packer = judge
    with torch.no_grad():
        branching = module(packer.pack(rows))
        packer.branching = False
        try:
            unrolled = module(packer.pack(rows))
        finally:
            packer.branching = True
    torch.testing.assert_close(branching.logprobs, unrolled.logprobs, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(branching.score_logprobs, unrolled.score_logprobs, atol=1e-5, rtol=0)


def test_projection_in_chunks_gives_the_same_values_and_gradients(judge, rows, monkeypatch):
    module, _, packer = judge
    gradients = []
    for chunk in (4096, 7):
        monkeypatch.setattr(type(module), "PROJECTION_CHUNK", chunk)
        module.zero_grad()
        module(packer.pack(rows)).logprobs.sum().backward()
        gradients.append(module.model.lm_head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


def test_validity_and_forbidden_tokens(judge, rows):
    module, text, packer = judge
    with torch.no_grad():
        outputs = module(packer.pack(rows))
    assert outputs.valid.tolist() == [True, True, True, False] * 3
    assert outputs.score_index.tolist() == [-1 if i is None else i for row in rows for i in row.score_indices]
    torch.testing.assert_close(outputs.score_logprobs[3].exp().sum(), torch.tensor(1.0))  # neutral, never nan
    assert text.end_id not in text.forbidden_ids and not set(text.label_ids) & set(text.forbidden_ids)
    assert text.image_token_id in text.forbidden_ids


def test_row_length_is_what_packing_makes(judge, rows):
    module, _, packer = judge
    for row in rows:
        assert packer.length(row, packer.image_tokens(row.image)) == packer.pack([row]).input_ids.shape[1]


def test_score_index_needs_the_marker(judge):
    _, text, _ = judge
    marker, label, word = list(text.marker_ids), text.label_ids[4], text.question("a", "realism")[-1]
    assert text.score_index([word, *marker, label, text.end_id]) == 1 + len(marker)
    assert text.score_index([label, word, *marker, word]) is None  # a digit in the reasoning is no score
    assert text.score_index([*marker, label, *marker, text.label_ids[2]]) == 2 * len(marker) + 1  # the last one counts
    assert text.score_index([]) is None


def test_missing_model_folder_says_what_to_do(tmp_path):
    with pytest.raises(
        JudgeError, match="judge.path must be one of builtin, small, .*student.*, or a Hugging Face model folder"
    ):
        judge_folder(str(tmp_path / "nowhere"))
