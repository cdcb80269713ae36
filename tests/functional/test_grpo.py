"""Advantages, clipped terms, KL estimators and token aggregation: hand numbers, gradients, properties,
micro-batches."""

import math

import pytest
import torch

from zr_ray.functional import grpo


def random_tokens(rows=5, tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(rows, tokens, generator=generator, dtype=torch.float64) * 3
    rollout = logprobs + 0.4 * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    return logprobs, rollout, advantages, mask


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0]).double()  # mean 3, population variance (4+1+0+9)/4 = 3.5
    wanted = torch.tensor([-2.0, -1.0, 0.0, 3.0]).double()
    assert torch.allclose(grpo.group_advantages(rewards, eps=0.0), wanted / math.sqrt(3.5), atol=1e-12)
    assert torch.allclose(grpo.group_advantages(rewards, eps=0.5), wanted / (math.sqrt(3.5) + 0.5), atol=1e-12)
    assert torch.equal(grpo.group_advantages(rewards, normalization="none"), wanted)
    assert not grpo.group_advantages(rewards.requires_grad_()).requires_grad


def test_advantage_properties():
    rewards = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    for normalization in ("std", "none"):
        advantages = grpo.group_advantages(rewards, normalization=normalization)
        assert torch.allclose(grpo.group_advantages(rewards + 7, normalization=normalization), advantages, atol=1e-9)
        assert torch.allclose(
            grpo.group_advantages(rewards[..., order], normalization=normalization), advantages[..., order], atol=1e-12
        )
        assert advantages.sum(-1).abs().max() < 1e-9
    assert torch.allclose(
        grpo.group_advantages(3 * rewards, eps=0.0), grpo.group_advantages(rewards, eps=0.0), atol=1e-9
    )
    assert grpo.group_advantages(torch.eye(16).double()[0], eps=0.0).max() <= math.sqrt(15) + 1e-9
    # One group is one input: changing another group changes nothing.
    changed = rewards.clone()
    changed[0, 0] *= 100
    assert torch.equal(grpo.group_advantages(changed)[1:], grpo.group_advantages(rewards)[1:])


def test_groups_without_spread_give_exactly_zero():
    same = torch.full((2, 8), 0.1)  # whose float32 mean is not 0.1
    for normalization in ("std", "none"):
        assert (grpo.group_advantages(same, eps=0.0, normalization=normalization) == 0).all()
    rounding = torch.tensor([0.1, 0.1 + 3e-8, 0.1 - 3e-8, 0.1])  # else divided by a std of 2e-8 with a small eps
    assert (grpo.group_advantages(rounding, eps=1e-8) == 0).all()
    assert (grpo.group_advantages(torch.tensor([0.1, 0.10001]), eps=1e-8) != 0).all()
    valid = torch.tensor([True, False, False])
    assert (grpo.group_advantages(torch.tensor([1.0, -5.0, 3.0]), valid=valid) == 0).all()
    assert (
        grpo.group_advantages(torch.tensor([1.0, math.nan, 3.0]), valid=~torch.ones(3, dtype=torch.bool)) == 0
    ).all()


def test_malformed_samples_stay_out_of_the_statistics():
    valid = torch.tensor([True, True, True, False])
    wanted = grpo.group_advantages(torch.tensor([1.0, 2.0, 4.0]))
    for reward in (1.0, -50.0, math.nan, math.inf):
        advantages = grpo.group_advantages(torch.tensor([1.0, 2.0, 4.0, reward]), valid=valid)
        assert torch.allclose(advantages[:3], wanted)
        assert advantages[3] == 0 if not math.isfinite(reward) else advantages[3] < 0
    lowest = grpo.group_advantages(torch.tensor([1.0, 2.0, 4.0, 1.0]), valid=valid)
    assert (
        lowest[3] == lowest[0]
    )  # gdso_reward's lowest valid reward: no better and no worse than the worst valid sample


def test_advantage_errors():
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        grpo.group_advantages(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="normalization"):
        grpo.group_advantages(torch.zeros(3, 2), normalization="var")
    with pytest.raises(ValueError, match="shape of rewards"):
        grpo.group_advantages(torch.zeros(3, 2), valid=torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_terms_are_the_plain_policy_gradient(ratio):
    logprobs, _, advantages, mask = random_tokens()
    learner = logprobs.clone().requires_grad_()
    terms, metrics = grpo.clipped_policy_terms(learner, logprobs, advantages, mask, 0.2, 0.2, ratio)
    assert torch.equal(terms[mask], -advantages[:, None].expand_as(terms)[mask]) and (terms[~mask] == 0).all()
    total, denominator = grpo.aggregate_tokens(terms, mask, "sequence_mean")
    (gradient,) = torch.autograd.grad(total / denominator, learner)
    # -A / (N |y|) on every generated token, whichever ratio: GSPO and GRPO agree on-policy
    wanted = -(advantages[:, None] * mask / mask.sum(-1, keepdim=True) / len(mask))
    assert torch.allclose(gradient, wanted, atol=1e-12)
    assert metrics == {"ratio_mean": 1, "ratio_min": 1, "ratio_max": 1, "ratio_max_abs_diff": 0, "clip_frac": 0}


def test_clipped_terms_against_a_loop():
    logprobs, rollout, advantages, mask = random_tokens(seed=3)
    terms, metrics = grpo.clipped_policy_terms(logprobs, rollout, advantages, mask, 0.1, 0.3)
    ratios, clipped = [], 0
    for n in range(logprobs.shape[0]):
        for t in range(logprobs.shape[1]):
            if not mask[n, t]:
                assert terms[n, t] == 0
                continue
            r, a = math.exp(logprobs[n, t] - rollout[n, t]), advantages[n].item()
            plain, held = r * a, min(max(r, 0.9), 1.3) * a
            assert terms[n, t].item() == pytest.approx(-min(plain, held), abs=1e-12)
            clipped += held < plain
            ratios.append(r)
    assert metrics["ratio_mean"] == pytest.approx(sum(ratios) / len(ratios))
    assert (metrics["ratio_min"], metrics["ratio_max"]) == (pytest.approx(min(ratios)), pytest.approx(max(ratios)))
    assert metrics["ratio_max_abs_diff"] == pytest.approx(max(abs(r - 1) for r in ratios))
    assert metrics["clip_frac"] == pytest.approx(clipped / len(ratios)) and clipped > 0


def test_clip_stops_the_gradient_only_where_it_pushes_further_out():
    # ratio 2, 2, .5, .5 with advantage +, -, +, -: clipped are (2, +) and (.5, -)
    rollout = torch.zeros(4, 1).double()
    learner = torch.tensor([2.0, 2.0, 0.5, 0.5]).double().log()[:, None].requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    terms, metrics = grpo.clipped_policy_terms(
        learner, rollout, advantages, torch.ones(4, 1, dtype=torch.bool), 0.2, 0.2
    )
    assert torch.allclose(terms[:, 0], torch.tensor([-1.2, 2.0, -0.5, 0.8]).double())
    (gradient,) = torch.autograd.grad(terms.sum(), learner)
    assert torch.allclose(gradient[:, 0], torch.tensor([0.0, 2.0, -0.5, 0.0]).double())
    assert metrics["clip_frac"] == 0.5
    higher, _ = grpo.clipped_policy_terms(learner, rollout, advantages, torch.ones(4, 1, dtype=torch.bool), 0.2, 0.28)
    assert higher[0, 0].item() == pytest.approx(-1.28)  # DAPO's clip-higher moves the upper bound only
    assert higher[3, 0].item() == pytest.approx(0.8)


def test_sequence_ratio_is_the_geometric_mean():
    logprobs = torch.tensor([[0.0, math.log(4.0), 9.0], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.allclose(grpo.sequence_ratio(logprobs, torch.zeros(2, 3), mask), torch.tensor([[2.0], [1.0]]))
    one_token = torch.tensor([[False, True, False], [True, False, False]])
    token = logprobs.exp()  # against a policy of log-probs 0
    assert torch.allclose(
        grpo.sequence_ratio(logprobs, torch.zeros(2, 3), one_token)[:, 0], torch.stack([token[0, 1], token[1, 0]])
    )


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("poison", [1e6, math.nan, math.inf, -math.inf])
def test_masked_tokens_have_no_influence(ratio, poison):
    logprobs, rollout, advantages, mask = random_tokens(seed=1)
    mask[2] = False  # a malformed sequence: nothing of it counts, its advantage included
    results = []
    for value in (0.0, poison):
        learner = torch.where(mask, logprobs, torch.full_like(logprobs, value)).requires_grad_()
        engine = torch.where(mask, rollout, torch.full_like(rollout, -value))
        a = torch.where(mask.any(-1), advantages, torch.full_like(advantages, value))
        terms, metrics = grpo.clipped_policy_terms(learner, engine, a, mask, 0.2, 0.2, ratio)
        kl = sum(grpo.kl_terms(learner, engine, k, mask) for k in ("k1", "k2", "k3"))
        total, denominator = grpo.aggregate_tokens(terms + kl, mask)
        (gradient,) = torch.autograd.grad(total / denominator, learner)
        results.append((terms, total, denominator, gradient, torch.tensor(list(metrics.values()))))
    assert (results[1][3][~mask] == 0).all() and results[1][3].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradient_reaches_the_learner_only():
    logprobs, rollout, advantages, mask = random_tokens()
    leaves = [t.clone().requires_grad_() for t in (logprobs, rollout, advantages)]
    for ratio in ("token", "sequence"):
        terms, _ = grpo.clipped_policy_terms(*leaves, mask, 0.9, 9.0, ratio)
        gradients = torch.autograd.grad((terms + grpo.kl_terms(leaves[0], leaves[1])).sum(), leaves, allow_unused=True)
        assert gradients[0].abs().sum() > 0 and gradients[1] is None and gradients[2] is None
    assert not grpo.truncated_correction(leaves[0], leaves[1], 2.0).requires_grad


def test_truncated_correction():
    old, rollout = torch.tensor([[-1.0, -1.0, -2.0]]), torch.tensor([[-1.0, -3.0, -1.0]])
    weight = grpo.truncated_correction(old, rollout, 2.0)
    assert torch.allclose(weight, torch.tensor([[1.0, 2.0, math.exp(-1)]])) and weight[0, 0] == 1
    with pytest.raises(ValueError, match="at least 1"):
        grpo.truncated_correction(old, rollout, 0.5)


def test_kl_by_hand_and_equality():
    logprobs, ref = torch.tensor([[math.log(0.5)]]).double(), torch.tensor([[math.log(0.25)]]).double()
    assert grpo.kl_terms(logprobs, ref, "k1").item() == pytest.approx(math.log(2))
    assert grpo.kl_terms(logprobs, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert grpo.kl_terms(logprobs, ref, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))
    for estimator in ("k1", "k2", "k3"):
        assert grpo.kl_terms(ref, ref, estimator) == 0
    with pytest.raises(ValueError, match="estimator"):
        grpo.kl_terms(ref, ref, "k4")


def test_kl_estimators_in_expectation():
    """Over all tokens of a small vocabulary, exactly: k1 and k3 average to KL, k3 >= 0, k2's gradient is KL's
    gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    ref = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    kl = (logprobs.exp() * (logprobs - ref)).sum()
    sampling = logprobs.exp().detach()  # every token once, weighted by its probability: the expectation over samples
    for estimator in ("k1", "k3"):
        assert (sampling * grpo.kl_terms(logprobs, ref, estimator)).sum().item() == pytest.approx(kl.item(), abs=1e-12)
    assert (grpo.kl_terms(logprobs, ref, "k3") >= 0).all()
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    gradients = {
        e: torch.autograd.grad((sampling * grpo.kl_terms(logprobs, ref, e)).sum(), logits, retain_graph=True)[0]
        for e in ("k1", "k2", "k3")
    }
    assert torch.allclose(gradients["k2"], exact, atol=1e-12)
    assert gradients["k1"].abs().max() < 1e-12  # as a loss, k1 does nothing on average
    # k3 as a loss is the gradient of the other direction, KL(ref || pi): sum_y pi (1 - ref/pi) grad log pi = pi - ref
    assert torch.allclose(gradients["k3"], sampling - ref.exp(), atol=1e-12)


def test_k3_keeps_its_digits_near_zero():
    ref = torch.tensor([[-1.0]])
    near = grpo.kl_terms(ref + 1e-4, ref, "k3").item()  # d^2/2 = 5e-9, where float32's steps around 1 are 6e-8
    assert near == pytest.approx(5e-9, rel=0.01)


def test_aggregation_by_hand():
    terms = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    for mode, length, wanted in (
        ("sequence_mean", None, (2 + 4, 2)),
        ("token_mean", None, (10, 4)),
        ("fixed_length", 5, (10, 10)),
    ):
        total, denominator = grpo.aggregate_tokens(terms, mask, mode, length)
        assert (total.item(), denominator.item()) == wanted
    total, denominator = grpo.aggregate_tokens(terms, torch.zeros_like(mask))
    assert (total.item(), denominator.item()) == (0, 0)


@pytest.mark.parametrize(("mode", "length"), [("sequence_mean", None), ("token_mean", None), ("fixed_length", 9)])
def test_micro_batches_equal_one_batch(mode, length):
    logprobs, rollout, advantages, mask = random_tokens(rows=9, seed=4)
    mask[3] = False

    def loss_parts(rows, learner, width=7):
        terms, _ = grpo.clipped_policy_terms(
            learner[rows, :width], rollout[rows, :width], advantages[rows], mask[rows, :width], 0.2, 0.2
        )
        return grpo.aggregate_tokens(terms, mask[rows, :width], mode, length)

    whole = logprobs.clone().requires_grad_()
    total, denominator = loss_parts(torch.arange(9), whole)
    (total / denominator).backward()
    parts = logprobs.clone().requires_grad_()
    denominators = sum(loss_parts(rows, logprobs)[1] for rows in torch.arange(9).split(2))
    accumulated = 0.0
    for rows in torch.arange(9).split(2):  # each part cut to its own longest sequence, as token micro-batches are
        part, _ = loss_parts(rows, parts, int(mask[rows].sum(-1).max()))
        (part / denominators).backward()
        accumulated += part.item()
    assert denominators == denominator
    assert accumulated == pytest.approx(total.item(), abs=1e-12)
    assert torch.allclose(parts.grad, whole.grad, atol=1e-14)


def test_token_errors():
    logprobs, rollout, advantages, mask = random_tokens()
    for call, message in (
        (lambda: grpo.clipped_policy_terms(logprobs, rollout[:, 1:], advantages, mask, 0.2, 0.2), "one shape"),
        (lambda: grpo.clipped_policy_terms(logprobs, rollout, advantages[1:], mask, 0.2, 0.2), "advantages must be"),
        (lambda: grpo.clipped_policy_terms(logprobs, rollout, advantages, mask.long(), 0.2, 0.2), "mask must be bool"),
        (lambda: grpo.clipped_policy_terms(logprobs, rollout, advantages, mask, 1.2, 0.2), "clip_low"),
        (lambda: grpo.clipped_policy_terms(logprobs, rollout, advantages, mask, 0.2, 0.2, "word"), "ratio must be"),
        (lambda: grpo.aggregate_tokens(logprobs, mask, "mean"), "mode must be"),
        (lambda: grpo.aggregate_tokens(logprobs, mask, "fixed_length"), "length must be given"),
        (lambda: grpo.aggregate_tokens(logprobs, mask, "token_mean", 5), "only there"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    _, metrics = grpo.clipped_policy_terms(logprobs, rollout, advantages, torch.zeros_like(mask), 0.2, 0.2)
    assert all(math.isnan(value) for value in metrics.values())
