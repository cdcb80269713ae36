"""The learner on real DeepSpeed, one rank: the update does not depend on how the rows are cut, and checkpoints continue
it exactly."""

import numpy as np
import pytest
import torch

from zr_ray.config.workers import LearnerSection
from zr_ray.data.images import load_image
from zr_ray.errors import CheckpointError, ConfigError
from zr_ray.models.packing import Row
from zr_ray.workers.learner import Learner, cheapest_batches


@pytest.fixture(scope="module")
def units(judge_path, world_items):
    from zr_ray.models.judge_text import JudgeText

    text = JudgeText(judge_path)
    rng = np.random.default_rng(1)
    words = [
        t
        for t in range(text.vocab_size)
        if t not in text.forbidden_ids and t not in text.label_ids and t != text.end_id
    ]

    def row(item, length):
        body = rng.choice(words, size=length)
        completion = np.array([*body, *text.marker_ids, text.label_ids[length % 9], text.end_id], np.int32)
        return Row(
            text.question(item.prompt, "realism"),
            load_image(item.image),
            (completion, completion[::-1].copy()),
            (length + 1, None),
        )

    return [[row(world_items[2 * i], 3 + i), row(world_items[2 * i + 1], 9 - i)] for i in range(4)]


def objective(outputs, indices, reference):
    loss = -(outputs.logprobs * outputs.mask).sum() / 100 - outputs.score_logprobs[outputs.valid].sum() / 50
    return loss, {"tokens": float(outputs.mask.sum())}


def section(**changes):
    return LearnerSection(threads=1, lr=1e-3, warmup_steps=0, **changes)


def weights(learner):
    return {name: value.clone() for name, value in learner.named_weights()}


def test_update_does_not_depend_on_microbatches(judge_path, units):
    results = []
    for tokens in (100_000, 200, 1):
        learner = Learner(judge_path, section(max_tokens_per_microbatch=tokens, zero_stage=1))
        stats = learner.accumulate(units, objective)
        learner.apply(1e-3)
        results.append((stats.microbatches, stats.sums["tokens"], weights(learner)))
    assert results[0][0] == 1 and results[2][0] == 4, [r[0] for r in results]
    for other in results[1:]:
        assert other[1] == results[0][1]
        for name, value in results[0][2].items():
            torch.testing.assert_close(other[2][name], value, atol=2e-5, rtol=0, msg=name)


def test_frozen_prefix_does_not_move_and_the_rest_does(judge_path, units):
    learner = Learner(judge_path, section(freeze=("model.visual",)))
    before = weights(learner)
    learner.accumulate(units, objective)
    learner.apply(1e-3)
    moved = {n for n, v in learner.named_weights() if not torch.equal(v, before[n])}
    assert moved and not any(n.startswith("model.visual") for n in moved)


def test_reference_and_policy_share_a_frozen_tower(judge_path, units):
    """One vision forward a micro-batch, the same log-probs and gradients as with one each."""
    results = []
    for freeze in (("model.visual",), ()):
        learner, towers, seen = Learner(judge_path, section(freeze=freeze), keep_reference=True), [], {}
        for module in (learner.reference, learner.engine.module):
            module.model.model.visual.register_forward_hook(lambda *_, towers=towers: towers.append(1))
        learner.reference.model.lm_head.weight.data.mul_(1.1)  # the reference is another policy

        def compared(outputs, indices, reference, seen=seen):
            seen["reference"] = reference.clone()
            return objective(outputs, indices, reference)

        learner.accumulate(units, compared)
        gradient = learner.engine.module.model.lm_head.weight.grad.clone()
        results.append((len(towers), seen["reference"], gradient))
    assert [r[0] for r in results] == [1, 2]
    torch.testing.assert_close(results[0][1], results[1][1], atol=0, rtol=0)
    torch.testing.assert_close(results[0][2], results[1][2], atol=1e-6, rtol=1e-5)


def test_unknown_freeze_prefix_is_refused(judge_path):
    with pytest.raises(ConfigError, match="no parameter name starts with 'vision'"):
        Learner(judge_path, section(freeze=("vision",)))


def test_checkpoint_continues_exactly(judge_path, units, tmp_path):
    learner = Learner(judge_path, section(), keep_reference=True)
    learner.accumulate(units, objective)
    learner.apply(1e-3)
    learner.refresh_reference()
    learner.save(tmp_path, {"step": 1})
    learner.accumulate(units, objective)
    norm = learner.apply(1e-3)["learner/grad_norm"]
    other = Learner(judge_path, section(), keep_reference=True)
    assert other.load(tmp_path)["step"] == 1
    for (name, a), (_, b) in zip(learner.reference.named_parameters(), other.reference.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    other.accumulate(units, objective)
    assert other.apply(1e-3)["learner/grad_norm"] == norm
    for (name, a), (_, b) in zip(learner.named_weights(), other.named_weights(), strict=True):
        assert torch.equal(a, b), name


def test_a_pickle_in_a_checkpoint_is_refused(judge_path, units, tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    learner = Learner(judge_path, section())
    learner.save(tmp_path, {"step": 1})
    torch.save({"module": Evil()}, next((tmp_path / "deepspeed").glob("*model_states.pt")))
    with pytest.raises(CheckpointError):
        learner.load(tmp_path)


def test_saved_judge_loads_in_transformers_with_the_same_weights(judge_path, units, tmp_path):
    from zr_ray.models.judge import load_packed_judge

    learner = Learner(judge_path, section())
    learner.accumulate(units, objective)
    learner.apply(1e-3)
    learner.save_judge(tmp_path / "judge")
    module, text, _ = load_packed_judge(tmp_path / "judge", torch.float32)
    loaded = dict(module.model.named_parameters())
    for name, value in learner.named_weights():
        assert torch.equal(loaded[name], value), name
    assert text.format == learner.text.format


def test_batches_are_the_cheapest_of_all_cuts():
    """Against every possible cut of a few units."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths, rows, limit = (
            sorted(rng.integers(1, 40, 7).tolist(), reverse=True),
            rng.integers(1, 4, 7).tolist(),
            int(rng.integers(40, 300)),
        )

        def cost(ends, lengths=lengths, rows=rows, limit=limit):
            total = 0.0
            for start, end in zip([0, *ends], ends, strict=False):
                size = lengths[start] * sum(rows[start:end])
                total += size + limit / 16 if size <= limit or end == start + 1 else np.inf
            return total

        cuts = [[i for i in range(1, 7) if bits >> (i - 1) & 1] + [7] for bits in range(64)]
        found = cheapest_batches(lengths, rows, limit)
        assert found[-1] == 7 and cost(found) == pytest.approx(min(map(cost, cuts)))
    assert cheapest_batches([190, 60, 60, 60, 59], [2] * 5, 4096) == [1, 5]  # one long answer does not pad the others
    assert cheapest_batches([60] * 5, [1] * 5, 120) == [1, 3, 5] and cheapest_batches([], [], 100) == []
