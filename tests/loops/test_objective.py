"""The GDSO objective on made-up outputs: any split over micro-batches gives the same loss and gradient; malformed
samples stay out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zr_ray.config.gdso import GdsoSection
from zr_ray.functional import scores
from zr_ray.functional.grpo import group_advantages
from zr_ray.loops.objective import GdsoObjective, collect, is_empty, mean_metrics, rollout_metrics
from zr_ray.models.judge import JudgeOutputs
from zr_ray.records import Judgement, JudgeRequest, PreferencePair
from zr_ray.rubric import PAPER, SCORE_BINS

B, G, T, K = 3, 4, 6, 9
LABEL_IDS = tuple(range(8, -1, -1))
"""Token id 8 is the label of the lowest bin."""


def make(config, seed=0, malformed=((1, 0, 2),)):
    """(rollouts, learner log-probs [B*2*G, T], lengths, label log-probs): the learner equals the engine."""
    rng = np.random.default_rng(seed)
    pairs = [PreferencePair(None, None, "realism", 4.0 + 0.5 * (b % 2), 2.5) for b in range(B)]
    requests, groups, lengths = [], [], []
    for b in range(B):
        for side in range(2):
            requests.append(JudgeRequest(f"{b}/{side}", np.arange(3, dtype=np.int32), np.zeros((2, 2, 3), np.uint8), 0))
            group = []
            for g in range(G):
                n = int(rng.integers(2, T + 1))
                labels = torch.from_numpy(rng.normal(size=K).astype(np.float32)).log_softmax(-1).numpy() - 0.1
                bad = (b, side, g) in malformed
                group.append(
                    Judgement(
                        "k",
                        g,
                        rng.integers(0, 9, n).astype(np.int32),
                        -rng.random(n).astype(np.float32),
                        None if bad else n - 1,
                        None if bad else labels,
                        7,
                    )
                )
                lengths.append(n)
            groups.append(group)
    rollouts = collect(pairs, requests, groups, config, PAPER, LABEL_IDS)
    logprobs = torch.zeros(B * 2 * G, T)
    for i, values in enumerate(rollouts.rollout_logprobs):
        logprobs[i, : len(values)] = torch.from_numpy(values)
    labels = torch.stack(
        [
            torch.from_numpy(j.score_logprobs) if j.score_logprobs is not None else torch.full((K,), -np.log(K))
            for g in groups
            for j in g
        ]
    )
    return rollouts, logprobs, torch.tensor(lengths), labels


def run(config, batches, seed=0, malformed=((1, 0, 2),)):
    rollouts, logprobs, lengths, labels = make(config, seed, malformed)
    logprobs.requires_grad_(), labels.requires_grad_()
    totals = rollout_metrics(rollouts, version=7)
    objective = GdsoObjective(rollouts, config, totals, length_limit=10)
    per_unit, loss, sums = 2 * G, 0.0, {}
    for units in batches:
        index = torch.tensor([u * per_unit + k for u in units for k in range(per_unit)])
        width = int(lengths[index].max())
        mask = torch.arange(width)[None] < lengths[index][:, None]
        valid = rollouts.valid.flatten()[index]
        value, metrics = objective(
            JudgeOutputs(
                logprobs[index][:, :width], mask, labels[index], valid, torch.where(valid, lengths[index] - 1, -1)
            ),
            units,
            logprobs.detach()[index][:, :width] - 0.3,
        )
        loss = loss + value
        sums = {k: sums.get(k, 0.0) + v for k, v in metrics.items()}
    loss.backward()
    return loss.item(), logprobs.grad, labels.grad, mean_metrics(totals | sums), objective


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "fixed_length"])
def test_any_split_gives_the_same_loss_and_gradient(aggregation):
    config = GdsoSection(group_size=G, token_aggregation=aggregation, beta_kl=0.1)
    whole = run(config, [[0, 1, 2]])
    split = run(config, [[2], [0, 1]])
    assert whole[0] == pytest.approx(split[0], abs=1e-6)
    torch.testing.assert_close(whole[1], split[1])
    torch.testing.assert_close(whole[2], split[2])
    for name in whole[3]:
        assert whole[3][name] == pytest.approx(split[3][name], abs=1e-5), name


def test_on_policy_ratio_is_one_and_the_gradient_is_advantage_over_count():
    config = GdsoSection(group_size=G, alpha_pointwise=0, alpha_pairwise=0, beta_kl=0)
    rollouts, _, lengths, _ = make(config)
    _, gradient, _, metrics, objective = run(config, [[0, 1, 2]])
    assert objective.ratio_max_abs_diff == 0.0 and metrics["policy/clip_frac"] == 0.0
    advantages = rollouts.advantages.flatten()
    for i in range(B * 2 * G):  # -A / T_i / N at every real token, Eq. (4)
        expected = -advantages[i] / lengths[i] / (B * 2 * G)
        torch.testing.assert_close(
            gradient[i, : lengths[i]], expected.expand(int(lengths[i])).float(), atol=1e-7, rtol=1e-4
        )
        assert not gradient[i, lengths[i] :].any()


def test_malformed_sample_takes_no_part_in_the_direct_losses_and_is_counted():
    config = GdsoSection(group_size=G, beta_kl=0)
    _, _, labels, metrics, _ = run(config, [[0, 1, 2]])
    bad = (1 * 2 + 0) * G + 2
    assert not labels[bad].any() and labels[bad + 1].any()
    assert metrics["rollout/malformed_frac"] == pytest.approx(1 / (B * 2 * G))
    rollouts, *_ = make(config)
    group = rollouts.rewards[1, 0]
    assert group[2] == group[rollouts.valid[1, 0]].min()  # the lowest of its group, not zero


def test_grpo_is_the_same_objective_without_the_direct_losses():
    grpo = GdsoSection(group_size=G, lambda_pairwise=0, alpha_pointwise=0, alpha_pairwise=0, beta_kl=0)
    _, _, labels, _, _ = run(grpo, [[0, 1, 2]])
    assert not labels.any()


def test_without_the_policy_term_the_direct_losses_are_as_they_were():
    full, direct = (run(GdsoSection(group_size=G, beta_kl=0, alpha_policy=a), [[0, 1, 2]]) for a in (1.0, 0.0))
    assert full[1].abs().max() > 0 and direct[1].abs().max() == 0
    torch.testing.assert_close(direct[2], full[2])
    half = run(GdsoSection(group_size=G, beta_kl=0, alpha_policy=0.5), [[0, 1, 2]])
    torch.testing.assert_close(half[1], full[1] / 2)


def test_the_gradient_of_the_reward_is_that_of_minus_the_mean_reward():
    """Pointwise and pairwise reward written out naively from the labels' log-probs, malformed samples left out."""
    off = {"group_size": G, "alpha_pointwise": 0, "alpha_pairwise": 0, "beta_kl": 0, "lambda_pairwise": 0.5}
    plain, pathwise = (run(GdsoSection(**off, alpha_reward=a), [[0, 1, 2]]) for a in (0.0, 1.0))
    assert plain[2].abs().max() == 0  # the policy term does not reach the label distribution by itself here
    torch.testing.assert_close(plain[1], pathwise[1])
    rollouts, _, _, labels = make(GdsoSection(**off))
    labels = labels.clone().requires_grad_()
    mu = (labels.log_softmax(-1).exp() @ rollouts.bins).view(B, 2, G)
    points, gaps = [], []
    for b in range(B):
        for side in range(2):
            kept, other = rollouts.valid[b, side], rollouts.valid[b, 1 - side]
            points += [(mu[b, side, i] - rollouts.human_scores[b, side]).abs() / 4 for i in range(G) if kept[i]]
            wanted = rollouts.human_scores[b, side] - rollouts.human_scores[b, 1 - side]
            gaps += [(mu[b, side, i] - mu[b, 1 - side][other] - wanted).abs().mean() / 4 for i in range(G) if kept[i]]
    loss = torch.stack(points).mean() + 0.5 * torch.stack(gaps).mean()
    loss.backward()
    assert pathwise[0] - plain[0] == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(pathwise[2], labels.grad, atol=1e-6, rtol=1e-4)


def test_a_parsed_score_is_the_label_that_was_sampled_not_the_likeliest_one():
    rollouts, *_ = make(GdsoSection(group_size=G, score_from="parsed"))
    for pair in range(B):
        for side in range(2):
            row = rollouts.units[pair][side]
            for g, (tokens, index) in enumerate(zip(row.completions, row.score_indices, strict=True)):
                if index is not None:
                    assert rollouts.expected_scores[pair, side, g] == 5.0 - 0.5 * int(tokens[index])
    assert (rollouts.expected_scores != make(GdsoSection(group_size=G))[0].expected_scores)[rollouts.valid].all()


def test_dr_grpo_divides_by_the_length_limit():
    """Every token weighs A / (N * limit), whatever the output's length; no division by the group's std."""
    direct = {"alpha_pointwise": 0, "alpha_pairwise": 0}
    config = GdsoSection(
        group_size=G, beta_kl=0, advantage_normalization="none", token_aggregation="fixed_length", **direct
    )
    rollouts, _, lengths, _ = make(config)
    _, gradient, _, _, _ = run(config, [[0, 1, 2]])
    centered = rollouts.advantages.flatten()
    for i in range(B * 2 * G):
        expected = -centered[i] / (B * 2 * G * 10)
        torch.testing.assert_close(
            gradient[i, : lengths[i]], expected.expand(int(lengths[i])).float(), atol=1e-7, rtol=1e-4
        )


def test_soft_pointwise_targets():
    """A Gaussian label pulls towards its neighbors too; on a bin, two-hot is the hard label. d CE / d label log-probs
    = (q - y) / n."""
    plain = {"group_size": G, "alpha_pairwise": 0, "beta_kl": 0, "lambda_pairwise": 0}
    hard = run(GdsoSection(**plain), [[0, 1, 2]])
    two_hot = run(GdsoSection(pointwise_target="two_hot", **plain), [[0, 1, 2]])
    torch.testing.assert_close(hard[2], two_hot[2])
    _, _, gradient, _, _ = run(GdsoSection(pointwise_target="gaussian", gaussian_std=0.4, **plain), [[2], [0, 1]])
    rollouts, _, _, labels = make(GdsoSection(**plain))
    target = scores.gaussian_soft_label(rollouts.human_scores, torch.full((B, 2), 0.4), torch.tensor(SCORE_BINS))
    target = target.unsqueeze(2).expand(B, 2, G, K).reshape(-1, K)
    expected = (labels.softmax(-1) - target) / rollouts.valid.sum()
    torch.testing.assert_close(gradient, expected * rollouts.valid.reshape(-1, 1), atol=1e-6, rtol=1e-4)
    assert (target > 0.05).sum(-1).min() >= 3  # the neighbors do take part


RATIOS = torch.tensor([0.5, 1.1, 1.5, 1.0, 2.5])


def run_shifted(stale):
    """(advantages, ratios, lengths [N], loss, gradient [N, T], metrics, objective) of the policy term alone where the
    learner is, sample by sample, RATIOS times as likely to write each token as the weights that sampled it."""
    config = GdsoSection(group_size=G, alpha_pointwise=0, alpha_pairwise=0, beta_kl=0)
    rollouts, logprobs, lengths, labels = make(config, malformed=())
    ratios = RATIOS.repeat(B * 2 * G)[: B * 2 * G]
    logprobs = (logprobs + ratios.log()[:, None]).requires_grad_()
    totals = rollout_metrics(rollouts, version=8)
    objective = GdsoObjective(rollouts, config, totals, stale=stale)
    mask, valid = torch.arange(T)[None] < lengths[:, None], rollouts.valid.flatten()
    loss, sums = objective(JudgeOutputs(logprobs, mask, labels, valid, lengths - 1), [0, 1, 2], None)
    loss.backward()
    advantages = rollouts.advantages.flatten().float()
    return advantages, ratios, lengths, loss.item(), logprobs.grad, mean_metrics(totals | sums), objective


def test_of_stale_rollouts_the_ratio_to_what_sampled_is_clipped():
    """-min(r A, clip(r, .8, 1.2) A) a token, r = learner / rollout; the gradient is -r A, or 0 where it is clipped."""
    advantages, ratios, lengths, loss, gradient, metrics, objective = run_shifted(stale=True)
    count, expected, clipped = B * 2 * G, 0.0, 0
    for i in range(count):
        a, r, n = advantages[i].item(), ratios[i].item(), int(lengths[i])
        expected -= min(r * a, min(max(r, 0.8), 1.2) * a) / count
        cut = (a > 0 and r > 1.2) or (a < 0 and r < 0.8)
        clipped += n * cut
        slope = 0.0 if cut else -a * r / n / count
        torch.testing.assert_close(gradient[i, :n], torch.full((n,), slope), atol=1e-6, rtol=1e-4)
        assert not gradient[i, n:].any()
    assert loss == pytest.approx(expected, abs=1e-5)
    assert 0 < clipped and metrics["policy/clip_frac"] == pytest.approx(clipped / int(lengths.sum()), abs=1e-5)
    mean = float((ratios * lengths).sum() / lengths.sum())
    assert metrics["policy/ratio_mean"] == pytest.approx(mean, abs=1e-5) and mean != 1.0
    assert objective.ratio_max_abs_diff == pytest.approx(1.5, abs=1e-5) and metrics["rollout/staleness"] == 1.0


def test_of_fresh_rollouts_the_same_difference_is_a_weight_that_nothing_clips():
    """-min(r, truncate_ratio) A: engine and learner hold the same weights, and differ by rounding."""
    advantages, ratios, lengths, _, gradient, metrics, _ = run_shifted(stale=False)
    count = B * 2 * G
    for i in range(count):
        slope = -advantages[i] * ratios[i].clamp_max(2.0) / lengths[i] / count
        torch.testing.assert_close(gradient[i, : lengths[i]], slope.expand(int(lengths[i])), atol=1e-6, rtol=1e-4)
    assert metrics["policy/clip_frac"] == 0.0 and metrics["policy/ratio_mean"] == pytest.approx(1.0)


def test_staleness_counts_versions():
    rollouts, *_ = make(GdsoSection(group_size=G))
    assert mean_metrics(rollout_metrics(rollouts, version=9))["rollout/staleness"] == 2.0


def test_groups_without_signal_empty_traces_and_spread_are_measured():
    rollouts, *_ = make(GdsoSection(group_size=G), malformed=())
    rewards, mu = rollouts.rewards.clone(), rollouts.expected_scores.clone()
    rewards[0, 0], rewards[2, 1] = 0.7, 0.1  # two of six groups got one reward for all
    advantages = group_advantages(rewards)
    mu[:] = torch.tensor([1.0, 3.0, 1.0, 3.0])
    empty = torch.zeros_like(rollouts.valid)
    empty[0, 0, :3] = True
    rollouts = replace(rollouts, rewards=rewards, advantages=advantages, expected_scores=mu, empty=empty)
    found = mean_metrics(rollout_metrics(rollouts, version=7))
    assert found["reward/no_signal_frac"] == pytest.approx(2 / 6) and found["score/group_std"] == pytest.approx(1.0)
    assert found["rollout/empty_frac"] == pytest.approx(3 / (6 * G))
    assert found["reward/group_std"] == pytest.approx(float(rewards.std(-1, correction=0).mean()))


def test_the_spread_of_a_group_is_that_of_its_well_formed_samples():
    rollouts, *_ = make(GdsoSection(group_size=G), malformed=((0, 0, 3), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3)))
    mu = torch.full_like(rollouts.expected_scores, 2.0)
    mu[0, 0] = torch.tensor([1.0, 3.0, 2.0, 99.0])  # the last is malformed: variance (1 + 1 + 0) / 3
    found = mean_metrics(rollout_metrics(replace(rollouts, expected_scores=mu), version=7))
    assert found["score/group_std"] == pytest.approx((2 / 3) ** 0.5 / 6)


def test_an_empty_trace_is_marker_and_label_alone():
    def output(tokens, index):
        return Judgement("k", 0, np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.float32), index, None, 0)

    assert is_empty(output(3, 1), marker_tokens=1) and not is_empty(output(4, 2), marker_tokens=1)
    assert is_empty(output(1, None), 1) and is_empty(output(0, None), 1) and not is_empty(output(5, None), 1)
