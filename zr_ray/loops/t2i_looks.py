"""Looks at held-out images during a run: fixed prompts and noise, the ODE sampler, every figure; before, during, after
and beside.

All ranks take part in a look, and all hold its result. Looks that are made once (`before`, the untrained generator at
other settings) are kept in the run folder, so a resumed run compares with the same images. When the reward has become
another version, their images are scored anew: differences between two versions would be no change of the generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from zr_ray.config.loader import load_config
from zr_ray.config.t2i import T2iConfig
from zr_ray.config.t2i_reward import RewardSection
from zr_ray.functional.group_advantages import image_rewards
from zr_ray.judging.held_out_images import Look, best_of, independent_figures, with_distances
from zr_ray.run.folder import CONFIG_FILE
from zr_ray.run.observe import duration
from zr_ray.workers.generator import GeneratorWorker
from zr_ray.workers.local_judge import LocalJudge
from zr_ray.workers.reward_source import RewardSource, Scored, join_scored
from zr_ray.workers.user_function import to_bytes

HELD_OUT = 0x4E1D
"""Stream of the noise of held-out images."""


class Looks:
    """One rank's part. `folder` is `held_out/` of the run folder."""

    def __init__(
        self,
        task,
        worker: GeneratorWorker,
        rewards: RewardSource,
        folder: Path,
        say: Callable[[str], None],
        version: int = 0,
    ) -> None:
        """say: one line of the job log, from rank 0. version: number of the reward that scores."""
        config: T2iConfig = task.config
        self.config, self.prompts, self.seeds = config, task.held_out, config.held_out.seeds
        self.worker, self.rewards, self.folder, self.say, self.version = worker, rewards, folder, say, version
        self.referee = LocalJudge(RewardSection(), task.referee) if task.referee is not None else None
        folder.mkdir(exist_ok=True)

    def look(
        self,
        count: int,
        weights: str,
        *,
        guidance: float | None = None,
        steps: int | None = None,
        seeds: int | None = None,
    ) -> Look:
        """Images of the first `count` held-out prompts by the ODE sampler, with all figures; complete on every rank."""
        worker, seeds = self.worker, seeds or self.seeds
        prompts = list(self.prompts[:count])
        mine = range(worker.rank, count, worker.world)
        items = [(p, s) for p in mine for s in range(seeds)]
        sigmas = None if steps is None else worker.adapter.sigmas(steps)
        images, scored, size = [], [], worker.options.micro_batch
        with worker.weights.use(weights):
            for start in range(0, len(items), size):
                part = items[start : start + size]
                texts = [prompts[p] for p, _ in part]
                noise = worker.noise([(HELD_OUT, p, s) for p, s in part])
                made = worker.sample(worker.encode(texts), noise, guidance_scale=guidance, sigmas=sigmas)
                pixels = worker.decode(made.clean)
                scored.append(self.rewards.submit(pixels, texts))
                images.append(to_bytes(pixels).movedim(1, -1).cpu().numpy())
        pixels, answers = np.concatenate(images), join_scored([future.result() for future in scored])
        texts = [prompts[p] for p, _ in items]
        figures = (
            self._reward_figures(answers) | independent_figures(pixels, texts) | self._referee_figures(pixels, texts)
        )
        return self._gathered(prompts, seeds, items, pixels, figures)

    def _referee_figures(self, pixels: np.ndarray, prompts: list[str]) -> dict[str, np.ndarray]:
        """Scores of a judge that never rewards, if there is one."""
        if self.referee is None:
            return {}
        images, size = torch.from_numpy(pixels).movedim(-1, 1).float() / 255, self.worker.options.micro_batch
        parts = [
            self.referee.submit(images[start : start + size], prompts[start : start + size]).result()
            for start in range(0, len(prompts), size)
        ]
        scored = join_scored(parts)
        named = {f"referee/{name}": scored.mu[:, d].numpy() for d, name in enumerate(scored.names)}
        return named | {"referee/sum": scored.mu.sum(-1).numpy()}

    def _reward_figures(self, scored: Scored) -> dict[str, np.ndarray]:
        named = {f"reward/{name}": scored.mu[:, d].numpy() for d, name in enumerate(scored.names)}
        total = image_rewards(scored.mu, scored.sigma, self.rewards.weights, risk=self.config.reward.risk)
        return {"reward/sum": total.numpy()} | named | {"reward/entropy": scored.entropy.mean(-1).numpy()}

    def _gathered(self, prompts, seeds: int, items, pixels: np.ndarray, figures: dict[str, np.ndarray]) -> Look:
        shares = [(items, pixels, figures)]
        if self.worker.world > 1:
            gathered: list = [None] * self.worker.world
            torch.distributed.all_gather_object(gathered, (items, pixels, figures))
            shares = gathered
        images = np.zeros((len(prompts), seeds, *pixels.shape[1:]), np.uint8)
        whole = {name: np.full((len(prompts), seeds), np.nan) for name in figures}
        for its, theirs, values in shares:
            for i, place in enumerate(its):
                images[place] = theirs[i]
                for name, value in values.items():
                    whole[name][place] = value[i]
        return Look(tuple(prompts), images, whole)

    def kept(self, name: str, weights: str, **options) -> Look:
        """A look at all prompts that is made once and then read from its file; each version of the reward has one."""
        path = self._file(name, self.version)
        if not path.is_file():
            started, said = time.time(), name.replace("_", " ")
            earlier = [file for n in range(self.version) if (file := self._file(name, n)).is_file()]
            lent = self._lent_before() if name == "before" and not earlier else None
            if earlier:
                look = self._scored_anew(Look.load(earlier[-1]))
            elif lent is not None:
                look, said = lent, f"{said}, as {self.config.held_out.before_of.name} saw it"
            else:
                baseline = None if name == "before" or "seeds" in options else self.before
                look = with_distances(self.look(len(self.prompts), weights, **options), baseline)
            if self.worker.rank == 0:
                look.save(path)
                self.say(f"{said}: {_means(look)} ({duration(time.time() - started)})")
            self.worker.barrier()
        return Look.load(path)

    def _lent_before(self) -> Look | None:
        """The look of `held_out.before_of`, if this run's would be the same; says so if not."""
        lender = self.config.held_out.before_of
        if lender is None or self.version:
            return None
        path, look = lender / self.folder.name / "before.npz", None
        problem = "it has none yet"
        if path.is_file():
            differ = what_differs_before(self.config, load_config(T2iConfig, lender / CONFIG_FILE, []))
            look = Look.load(path)
            if differ or look.prompts != tuple(self.prompts):
                look, problem = None, f"it has other {', '.join(differ) or 'prompts'}"
        found = [look is not None]
        if self.worker.world > 1:  # it may be written just now: ranks must not find differently
            found = [False] * self.worker.world
            torch.distributed.all_gather_object(found, look is not None)
        if all(found):
            return look
        if self.worker.rank == 0:
            self.say(f"before: made anew, {lender} cannot lend its look: {problem}")
        return None

    def _file(self, name: str, version: int) -> Path:
        return self.folder / (f"{name}.v{version}.npz" if version else f"{name}.npz")

    def _scored_anew(self, look: Look) -> Look:
        """The same images with the scores of the present version of the reward."""
        count, seeds, size = *look.images.shape[:2], self.worker.options.micro_batch
        items = [(p, s) for p in range(self.worker.rank, count, self.worker.world) for s in range(seeds)]
        pixels = np.stack([look.images[place] for place in items])
        images = torch.from_numpy(pixels).movedim(-1, 1).float() / 255
        texts = [look.prompts[p] for p, _ in items]
        asked = [
            self.rewards.submit(images[start : start + size], texts[start : start + size])
            for start in range(0, len(items), size)
        ]
        figures = self._reward_figures(join_scored([future.result() for future in asked]))
        again = self._gathered(list(look.prompts), seeds, items, pixels, figures)
        return Look(look.prompts, look.images, look.figures | again.figures)

    def look_before(self) -> None:
        """The untrained generator, which all others are compared with."""
        self.before = self.kept("before", "reference")

    def beside(self, after: Look) -> dict[str, Look]:
        """What training competes with: the untrained generator at other settings; both with the better of two by the
        reward; and the untrained one with the best of as many as `held_out.best_of`."""
        guidance, steps = self.config.held_out.guidance_beside, 2 * self.config.generator.steps
        count, more = self.config.held_out.best_of, {}
        if count > 2:
            many = self.kept(f"untrained_{count}_seeds", "reference", seeds=count)
            more = {f"untrained, best of {count}": best_of(many, count, self.seeds)}
        return {
            "untrained, guidance": self.kept("untrained_guidance", "reference", guidance=guidance),
            "untrained, twice the steps": self.kept("untrained_twice_the_steps", "reference", steps=steps),
            "untrained, best of 2": best_of(self.before, 2),
            "trained, best of 2": best_of(after, 2),
            **more,
        }


def what_differs_before(own: T2iConfig, other: T2iConfig) -> list[str]:
    """Sections in which two runs differ so that they see other images, or other figures of them, before training."""
    alike = {
        "generator": own.generator == other.generator,
        "prompts": own.prompts == other.prompts,
        # how scores become a gradient or an advantage changes nothing that a look measures
        "reward": own.reward.model_copy(update={"aggregation": other.reward.aggregation}) == other.reward,
        "held_out": (own.held_out.seeds, own.held_out.referee) == (other.held_out.seeds, other.held_out.referee),
    }
    return [name for name, same in alike.items() if not same]


def _means(look: Look) -> str:
    names = [n for n in ("reward/sum", "verifier/sum", "verifier/match", "image/seed_distance") if n in look.figures]
    return ", ".join(f"{name.replace('/', ' ')} {np.nanmean(look.figures[name]):.3f}" for name in names)
