"""LoRA over a judge: merged weights are what it computes with, the reference adapter is another policy on the same
weights, and checkpointed activations change no gradient."""

import numpy as np
import pytest
import torch

from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.errors import ConfigError
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.packing import Row
from zr_ray.workers.lora import POLICY, Lora, check_lora


@pytest.fixture(scope="module")
def rows(judge_path, world_items):
    _, text, _ = load_packed_judge(judge_path, torch.float32)
    rng = np.random.default_rng(1)
    taken = {*text.forbidden_ids, *text.label_ids, text.end_id}
    words = [t for t in range(text.vocab_size) if t not in taken]

    def row(item, length):
        body = rng.choice(words, size=length)
        completion = np.array([*body, *text.marker_ids, text.label_ids[length % 9], text.end_id], np.int32)
        return Row(text.question(item.prompt, "realism"), load_image(item.image), (completion,), (length + 1,))

    return [row(item, 3 + n) for n, item in enumerate(world_items[:3])]


def logprobs(module, packer, rows):
    with torch.no_grad():
        return module(packer.pack(rows)).logprobs


def test_merged_weights_and_reference(judge_path, rows):
    plain, _, packer = load_packed_judge(judge_path, torch.float32)
    before = logprobs(plain, packer, rows)
    module, _, _ = load_packed_judge(judge_path, torch.float32)
    lora = Lora(module.model, LearnerSection(lora_rank=4, lora_alpha=8.0), keep_reference=True)
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert trained and all(f".lora_A.{POLICY}." in n or f".lora_B.{POLICY}." in n for n in trained)
    assert not any("visual" in n or "lm_head" in n for n in trained)
    torch.testing.assert_close(logprobs(module, packer, rows), before, atol=0, rtol=0)  # B starts at 0
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        module(packer.pack(rows)).logprobs.sum().neg().backward()
        optimizer.step()
        with lora.as_reference():
            assert not torch.is_grad_enabled()
            torch.testing.assert_close(module(packer.pack(rows)).logprobs, before, atol=0, rtol=0)
    assert [n for n, p in module.named_parameters() if p.requires_grad] == trained  # as before the reference's forward
    after = logprobs(module, packer, rows)
    assert (after - before).abs().max() > 0.05
    merged = dict(lora.merged(module.model.named_parameters()))
    assert merged.keys() == dict(plain.model.named_parameters()).keys()
    plain.model.load_state_dict(merged, strict=False)
    torch.testing.assert_close(logprobs(plain, packer, rows), after, atol=1e-5, rtol=1e-5)
    for own, other in lora.pairs():  # what a refresh does
        other.data.copy_(own.data)
    with lora.as_reference():
        torch.testing.assert_close(module(packer.pack(rows)).logprobs, after, atol=0, rtol=0)


def test_checkpointed_activations_give_the_same_gradients(judge_path, rows):
    gradients, kept = [], []
    for checkpointing in (False, True):
        module, _, packer = load_packed_judge(judge_path, torch.float32)
        module.train()
        if checkpointing:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        held, packed = [], packer.pack(rows)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            loss = module(packed).logprobs.sum()
        kept.append(sum(held))
        loss.backward()
        gradients.append({n: p.grad for n, p in module.named_parameters()})
    assert kept[1] < 0.5 * kept[0], kept
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_layers_by_name_and_what_is_refused(judge_path):
    module, _, _ = load_packed_judge(judge_path, torch.float32)
    lora = Lora(module.model, LearnerSection(lora_rank=2, lora_targets=("q_proj", "v_proj")), keep_reference=False)
    assert {name.rpartition(".")[2] for name in lora.targets} == {"q_proj", "v_proj"} and lora.pairs
    frozen = LearnerSection(lora_rank=4, lora_targets=("q_proj",), freeze=("model.language_model",))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        check_lora(judge_path, frozen)
    with pytest.raises(ConfigError, match="'q_project' is no linear layer"):
        check_lora(judge_path, LearnerSection(lora_rank=4, lora_targets=("q_project",)))
    check_lora(judge_path, LearnerSection(lora_rank=4, freeze=("model.visual",)))
