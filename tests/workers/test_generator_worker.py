"""Generator worker and algorithms: gradients against plain backpropagation through the sampler, invariances, resume,
what is saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zr_ray.config.t2i import T2iConfig
from zr_ray.functional.flow import ode_step
from zr_ray.loops.t2i_flow_grpo import FlowGrpo
from zr_ray.loops.t2i_gradient import RewardGradient
from zr_ray.loops.t2i_nft import Nft
from zr_ray.loops.t2i_rollout import NOISE, StepPrompts, sent_rollout
from zr_ray.models.generators.adapter import Noise
from zr_ray.models.generators.load import generator_folder
from zr_ray.run.observe import Timer
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.reward_source import RewardSource, Scored

PROMPTS = ("small red circle", "big blue square")
SEED = (3, 0)


class PatternReward(RewardSource):
    """A reward with a known gradient: two scores, each the mean of a fixed random pattern times a bent image."""

    def value(self, images):
        pattern = torch.randn(2, *images.shape[1:], generator=torch.Generator().manual_seed(5))
        return torch.stack([(pattern[d] * images.square()).mean((1, 2, 3)) * 30 for d in range(2)], -1)

    def answer(self, images, prompts, gradient):
        leaf = images.float().requires_grad_(gradient)
        mu = self.value(leaf)
        extra = {}
        if gradient:
            reward = (mu.double() * self.weights).sum(-1)
            (slopes,) = torch.autograd.grad(reward.sum(), leaf)
            extra = {"reward": reward.detach(), "gradients": slopes}
        mu = mu.detach().double()
        zero = torch.zeros_like(mu)
        return Scored(self.names, mu, zero, mu, zero, ("pattern",) * len(mu), ("",) * len(mu), **extra)


def config(**sections):
    tree = {
        "generator": {"compiled": False, "steps": 3, "micro_batch": 4, "max_prompt_tokens": 9},
        "reward": {"weights": {"alignment": 1.0, "realism": -0.5}},
        "t2i": {"steps": 4, "prompts_per_step": 2, "group_size": 2},
        "actor": {"warmup_steps": 1},
    }
    return T2iConfig.model_validate({name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections})


def setup(algorithm, **sections):
    sections["t2i"] = {"algorithm": algorithm, "prompts_per_step": 2, "group_size": 2, "steps": 4} | sections.get(
        "t2i", {}
    )
    made = config(**sections)
    worker = GeneratorWorker(generator_folder("builtin"), made.generator, made.actor)
    return made, worker, PatternReward(made.reward)


def batch(group):
    return StepPrompts(PROMPTS, (0, 1), SEED, group, 2)


def gradients_of_a_step(worker, algorithm, group):
    """What `apply` finds, before the optimizer."""
    caught = {}
    original = worker.apply

    def catching(lr, size):
        caught["gradients"] = [None if v.grad is None else v.grad.clone() for v in worker.weights.places]
        caught["size"] = size
        return original(lr, size)

    worker.apply = catching
    metrics = algorithm.step(batch(group), 1e-4)
    return caught["gradients"], metrics


def close(one, other, tolerance=1e-4):
    largest = max(float(g.abs().max()) for g in other if g is not None)
    assert largest > 0
    for a, b in zip(one, other, strict=True):
        if b is not None and b.abs().max() > 0:
            assert (a - b).abs().max() < tolerance * largest


def sampled(worker, conditions, noise, detach_before=0):
    """The sampler by plain autograd; steps before `detach_before` carry no gradient. Returns all states."""
    x, states = noise, [noise]
    for k, (now, then) in enumerate(zip(worker.sigmas[:-1], worker.sigmas[1:], strict=True)):
        with torch.set_grad_enabled(k >= detach_before):
            v = worker.adapter.velocity(x, now.expand(len(x)), conditions)
            x = ode_step(x, v, now.expand(len(x)), then.expand(len(x)))
        states.append(x)
    return states


class TestGradientFamily:
    """With the cut at 0, without clipping and anchor, each algorithm is a published one, and autograd can check it."""

    PLAIN = {"reward_sigma_min": 0.0, "anchor": {"enabled": False}}

    def plain(self, algorithm, **gradient):
        t2i = self.PLAIN | {"gradient": {"clip_to_median": 0.0} | gradient}
        made, worker, rewards = setup(algorithm, t2i=t2i)
        return made, worker, rewards, RewardGradient(made, worker, rewards, Timer())

    def wanted(self, worker, rewards, latents):
        images = worker.adapter.decode(latents)
        reward = (rewards.value(images).double() * rewards.weights).sum(-1)
        return torch.autograd.grad(-reward.sum() / len(latents), worker.weights.places, allow_unused=True)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_draft_is_backpropagation_through_the_last_steps(self, steps):
        made, worker, rewards, algorithm = self.plain("draft", steps_with_gradient=steps)
        conditions, noise = worker.encode(PROMPTS), worker.noise(batch(1).image_seeds(NOISE))
        wanted = self.wanted(worker, rewards, sampled(worker, conditions, noise, 3 - steps)[-1])
        got, _ = gradients_of_a_step(worker, algorithm, 1)
        close(got, wanted)

    def test_refl_is_backpropagation_through_the_estimate_of_one_step(self):
        made, worker, rewards, algorithm = self.plain("refl")
        from zr_ray.functional.reward_gradient import spread_steps
        from zr_ray.loops.t2i_rollout import CHOICE
        from zr_ray.workers.generator import generator_of

        (step,) = spread_steps(algorithm.candidates, 1, generator_of(*SEED, CHOICE))
        conditions, noise = worker.encode(PROMPTS), worker.noise(batch(1).image_seeds(NOISE))
        start = sampled(worker, conditions, noise, 9)[step].detach()
        level = worker.sigmas[step].expand(2)
        velocity = worker.adapter.velocity(start, level, conditions)
        wanted = self.wanted(worker, rewards, start - level.view(-1, 1, 1, 1) * velocity)
        got, _ = gradients_of_a_step(worker, algorithm, 1)
        close(got, wanted)

    def test_flowbp_with_all_steps_is_the_gradient_that_ignores_the_way_through_later_steps(self):
        made, worker, rewards, algorithm = self.plain("flowbp", steps_with_gradient=3)
        conditions, noise = worker.encode(PROMPTS), worker.noise(batch(1).image_seeds(NOISE))
        states = [s.detach() for s in sampled(worker, conditions, noise, 9)]
        surrogate = states[-1]
        for k, (now, then) in enumerate(zip(worker.sigmas[:-1], worker.sigmas[1:], strict=True)):
            v = worker.adapter.velocity(states[k], now.expand(2), conditions)
            surrogate = surrogate + (then - now) * (v - v.detach())
        wanted = self.wanted(worker, rewards, surrogate)
        got, _ = gradients_of_a_step(worker, algorithm, 1)
        close(got, wanted)

    def test_draft_lv_runs_and_raises_the_reward_along_its_step(self):
        made, worker, rewards, algorithm = self.plain("draft_lv")
        first = algorithm.step(batch(1), 3e-4)["reward/total"]
        for _ in range(2):
            last = algorithm.step(batch(1), 3e-4)["reward/total"]
        assert last > first

    def test_balance_brings_every_score_to_one_size(self):
        """The same update as without it, at the weights that make the scores' gradients equally large."""

        class EachReward(PatternReward):
            def answer(self, images, prompts, gradient):
                leaf = images.float().requires_grad_()
                mu = self.value(leaf)
                slopes = [torch.autograd.grad(mu[:, d].sum(), leaf, retain_graph=True)[0] for d in range(2)]
                self.each = torch.stack(slopes, 1) * torch.tensor([1.0, 40.0]).view(2, 1, 1, 1)
                made = super().answer(images, prompts, gradient)
                total = torch.einsum("ndchw,d->nchw", self.each, self.weights.float())
                return replace(made, gradients=total, each=self.each if self.config.balance else None)

        def update(balance, scale=1.0):
            reward = {"weights": {"alignment": 1.0, "realism": -0.5}, "balance": balance}
            t2i = self.PLAIN | {"gradient": {"clip_to_median": 0.0, "steps_with_gradient": 1}}
            made, worker, _ = setup("draft", t2i=t2i, reward=reward)
            rewards = EachReward(made.reward)
            rewards.weights = rewards.weights * scale
            gradients, metrics = gradients_of_a_step(worker, RewardGradient(made, worker, rewards, Timer()), 1)
            return gradients, metrics, rewards

        balanced, metrics, rewards = update(True)
        size = rewards.each.flatten(2).norm(dim=2).square().mean(0).sqrt().double()
        weights = rewards.weights.abs()
        common = (weights * size).sum() / weights.sum()
        by_hand, _, _ = update(False, scale=common / size)
        close(balanced, by_hand)
        assert metrics["gradient/largest_share"] == pytest.approx(
            float((weights * size).max() / (weights * size).sum())
        )


class TestPolicyFamily:
    def test_flow_grpo_is_on_policy_at_its_first_update_and_drifts_at_the_second(self):
        made, worker, rewards = setup("flow_grpo", t2i={"flow_grpo": {"window": 1, "updates": 1}})
        metrics = FlowGrpo(made, worker, rewards, Timer()).step(batch(2), 1e-4)
        assert metrics["policy/ratio_max_abs_diff"] == 0 and metrics["policy/clip_frac"] == 0
        made, worker, rewards = setup("flow_grpo", t2i={"flow_grpo": {"window": 1, "updates": 2}})
        metrics = FlowGrpo(made, worker, rewards, Timer()).step(batch(2), 1e-3)
        assert metrics["policy/ratio_max_abs_diff"] > 0

    @pytest.mark.parametrize("same", [False, True])
    def test_a_group_may_start_from_one_noise_and_then_differs_by_the_stochastic_steps(self, same):
        made, worker, rewards = setup("flow_grpo")
        noise = Noise("flow", 0.7, (0,))
        rolled = sent_rollout(worker, rewards, batch(2), Timer(), noise=noise, same_noise=same).wait()
        first, second = (rolled.states[step].view(2, 2, -1) for step in (0, 1))
        assert torch.equal(first[:, 0], first[:, 1]) == same
        assert not torch.equal(first[0, 0], first[1, 0])  # another prompt, another noise
        assert not torch.isclose(second[:, 0], second[:, 1]).all(-1).any()

    def test_nft_moves_towards_the_better_image(self):
        made, worker, rewards = setup("nft", t2i={"group_size": 4, "anchor": {"enabled": False}})
        algorithm = Nft(made, worker, rewards, Timer())
        first = algorithm.step(batch(4), 3e-4)["reward/total"]
        for _ in range(4):
            last = algorithm.step(batch(4), 3e-4)["reward/total"]
        assert last > first

    def test_images_that_were_not_scored_change_nothing_but_their_count(self):
        class Holed(PatternReward):
            def answer(self, images, prompts, gradient):
                made = super().answer(images, prompts, gradient)
                made.mu[0] = torch.nan
                return Scored(
                    made.names,
                    made.mu,
                    made.sigma,
                    made.parsed,
                    made.entropy,
                    made.versions,
                    ("failed: lost",) + made.reasons[1:],
                )

        made, worker, _ = setup("nft")
        metrics = Nft(made, worker, Holed(made.reward), Timer()).step(batch(2), 1e-4)
        # of the first group of two, one image is left: the group drops out
        assert metrics["reward/failed"] == 1 and metrics["reward/images"] == 3
        assert metrics["reward/dropped"] == pytest.approx(2 / 3) and metrics["actor/skipped"] == 0


class TestWorker:
    def test_the_update_does_not_depend_on_the_micro_batch(self):
        found = []
        for size in (2, 4):
            made, worker, rewards = setup(
                "nft", generator={"compiled": False, "steps": 3, "micro_batch": size, "max_prompt_tokens": 9}
            )
            gradients, _ = gradients_of_a_step(worker, Nft(made, worker, rewards, Timer()), 2)
            found.append(gradients)
        close(found[0], found[1])

    def test_anchor_holds_the_velocity_and_only_from_the_second_update_on(self):
        far = []
        for weight in (0.0, 200.0):
            anchor = {"below": weight, "above": weight}
            made, worker, rewards = setup("nft", t2i={"anchor": anchor, "group_size": 2})
            algorithm = Nft(made, worker, rewards, Timer())
            for _ in range(4):
                metrics = algorithm.step(batch(2), 3e-4)
            far.append(metrics["anchor/distance"])
        assert far[1] < 0.8 * far[0]

    def test_a_resumed_worker_goes_on_exactly(self, tmp_path):
        made, worker, rewards = setup("nft")
        algorithm = Nft(made, worker, rewards, Timer())
        algorithm.step(batch(2), 1e-4)
        worker.save(tmp_path, {"step": 1})
        wanted = algorithm.step(batch(2), 1e-4)
        made, other, rewards = setup("nft")
        assert other.load(tmp_path) == {"step": 1}
        got = Nft(made, other, rewards, Timer()).step(batch(2), 1e-4)
        assert got | {"actor/memory_gib": 0} == wanted | {"actor/memory_gib": 0}
        assert all(torch.equal(a, b) for a, b in zip(worker.weights.masters, other.weights.masters, strict=True))
        assert all(
            torch.equal(a, b)
            for a, b in zip(worker.weights.sets["average"], other.weights.sets["average"], strict=True)
        )

    def test_weight_sets_come_and_go(self):
        made, worker, rewards = setup("nft")
        Nft(made, worker, rewards, Timer()).step(batch(2), 1e-3)
        conditions, noise = worker.encode(PROMPTS), worker.noise(batch(1).image_seeds(NOISE))
        now = worker.sample(conditions, noise).clean
        with worker.weights.use("reference"):
            before = worker.sample(conditions, noise).clean
        assert not torch.allclose(now, before) and torch.equal(now, worker.sample(conditions, noise).clean)
        fresh = GeneratorWorker(generator_folder("builtin"), made.generator, made.actor)
        assert torch.equal(before, fresh.sample(conditions, noise).clean)


class TestSaved:
    def images(self, pipeline):
        return pipeline(
            list(PROMPTS), height=64, width=64, num_inference_steps=3, guidance_scale=0.0, max_sequence_length=16,
            output_type="pt", generator=[torch.Generator().manual_seed(i) for i in range(2)],
        ).images  # fmt: skip

    def test_all_weights_as_a_diffusers_folder(self, tmp_path):
        from diffusers import DiffusionPipeline

        made, worker, rewards = setup("nft")
        Nft(made, worker, rewards, Timer()).step(batch(2), 1e-3)
        worker.save_generator(tmp_path / "generator")
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "generator")
        with worker.weights.use("average"):
            held = dict(worker.adapter.transformer.state_dict())
            assert all(torch.equal(value, held[name]) for name, value in pipeline.transformer.state_dict().items())
        base = DiffusionPipeline.from_pretrained(generator_folder("builtin"))
        assert (self.images(pipeline) - self.images(base)).abs().max() > 1e-3

    def test_lora_as_diffusers_loads_it(self, tmp_path):
        from diffusers import DiffusionPipeline
        from safetensors.torch import load_file

        generator = {
            "compiled": False,
            "steps": 3,
            "micro_batch": 4,
            "max_prompt_tokens": 9,
            "lora": {"rank": 4, "alpha": 8, "comfyui": True},
        }
        made, worker, rewards = setup("nft", generator=generator)
        algorithm = Nft(made, worker, rewards, Timer())
        for _ in range(2):
            algorithm.step(batch(2), 1e-2)
        worker.save_generator(tmp_path / "lora", "trained")
        pipeline = DiffusionPipeline.from_pretrained(generator_folder("builtin"))
        before = self.images(pipeline)
        pipeline.load_lora_weights(tmp_path / "lora")
        assert (self.images(pipeline) - before).abs().max() > 1e-3
        (file,) = (tmp_path / "lora").glob("*.safetensors")
        loaded = [v for n, v in pipeline.transformer.named_parameters() if "lora_" in n]
        assert len(load_file(file)) == len(loaded) == len(worker.weights.places)
        ours = sorted(float(v.abs().sum()) for v in worker.weights.places)
        assert sorted(float(v.abs().sum()) for v in loaded) == pytest.approx(ours, rel=1e-5)
        self.same_under_comfyui_names(worker, tmp_path / "lora" / "comfyui", self.images(pipeline))

    def same_under_comfyui_names(self, worker, folder, wanted):
        """diffusers reads Z-Image's ComfyUI names too, with their alpha: all keys, the same images."""
        from diffusers import DiffusionPipeline
        from safetensors.torch import load_file

        held = load_file(folder / "lora.safetensors")
        assert len(held) == 3 * len(worker.weights.places) // 2
        assert all(name.startswith("diffusion_model.") for name in held)
        assert {name.rpartition(".lora_")[2] or name for name in held if "alpha" not in name} == {
            "down.weight",
            "up.weight",
        }
        assert all(float(value) == 8 for name, value in held.items() if name.endswith(".alpha"))
        pipeline = DiffusionPipeline.from_pretrained(generator_folder("builtin"))
        pipeline.load_lora_weights(folder)
        loaded = [name for name, _ in pipeline.transformer.named_parameters() if "lora_" in name]
        assert len(loaded) == len(worker.weights.places)
        assert (self.images(pipeline) - wanted).abs().max() < 1e-4
