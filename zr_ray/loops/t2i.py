"""Text-to-image post-training, on every diffusion actor: sample, ask the reward service, update, look at held-out
images, save.

Runs inside Ray Train. Each rank samples and scores its own share of a step's prompts; nothing passes through the
driver. Every random choice is a function of (run seed, step, place), so a resumed run repeats what the killed one would
have done.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from zr_ray.config.t2i import T2iConfig
from zr_ray.loops.journal import Journal
from zr_ray.loops.reward_versions import RewardVersions
from zr_ray.loops.t2i_fitness import say_fitness
from zr_ray.loops.t2i_flow_grpo import FlowGrpo
from zr_ray.loops.t2i_gradient import RewardGradient
from zr_ray.loops.t2i_looks import Looks
from zr_ray.loops.t2i_nft import Nft
from zr_ray.loops.t2i_result import finished
from zr_ray.loops.t2i_rollout import StepPrompts
from zr_ray.loops.t2i_watch import Watch
from zr_ray.run.folder import RunFolder
from zr_ray.run.observe import duration
from zr_ray.serving.reward_source import open_source
from zr_ray.workers.generator import GeneratorWorker, generator_of
from zr_ray.workers.reward_source import RewardSource

if TYPE_CHECKING:
    from zr_ray.loops.launch_t2i import T2iTask


class Algorithm(Protocol):
    """One rank's; built from (config, worker, rewards, timer)."""

    def step(self, batch: StepPrompts, lr: float) -> dict[str, float]:
        """Sample, score, update; metrics are means over all ranks."""


ALGORITHMS = {
    "nft": Nft,
    "flow_grpo": FlowGrpo,
    "flowbp": RewardGradient,
    "refl": RewardGradient,
    "draft": RewardGradient,
    "draft_lv": RewardGradient,
}


def train(loop_config: dict) -> None:
    """One rank from start, or from the newest checkpoint, to the last step."""
    task: T2iTask = loop_config["task"]
    config: T2iConfig = task.config
    c, run = config.t2i, RunFolder(task.run_path)
    worker = GeneratorWorker(task.generator, config.generator, config.actor, *ranks())
    rewards, versions = open_source(config.reward, task.reward_target), RewardVersions(run.path)
    rewards.numbers |= versions.numbers()
    watch = Watch(worker, config, run)
    hung_s = dict.fromkeys(("sample", "train", "checkpoint"), config.actor.deadline_s)
    hung_s["reward"] = config.actor.deadline_s + config.reward.deadline_s
    journal = Journal(task.run_path, watch, config.checkpoint, c.steps, task.started_at, config.run, hung_s)
    looks = Looks(task, worker, rewards, run.path / "held_out", journal.say, versions.number)
    algorithm: Algorithm = ALGORITHMS[c.algorithm](config, worker, rewards, journal.timer)

    done = journal.restore()
    watch.rewind(done)
    looks.look_before()
    if versions.number == 0:  # a later version was proved on what the generator makes now
        say_fitness(looks.before, config, journal.say)

    def look_due(done: int) -> bool:
        return watch.reduce_max(float(versions.due(done, c.steps, config.reward.refresh))) > 0

    for step in journal.steps(done):
        if watch.over():
            break
        if look_due(step):
            leave(journal, versions, rewards, step)
            return
        started = time.perf_counter()
        metrics = algorithm.step(step_prompts(task, step, worker.rank, worker.world), learning_rate(step + 1, config))
        watch.state.training_s += time.perf_counter() - started
        for line in rewards.new_faults():
            journal.say(line)
        done = step + 1
        if config.held_out.every_steps and done % config.held_out.every_steps == 0:
            with journal.timer("look"):
                journal.note(watch.look(looks, done))
        journal.step(done, metrics)
        journal.checkpoint(done, now=bool(watch.state.stopped) or look_due(done))
    journal.finish("t2i", finished(task, watch, looks, rewards, done, run.path))
    journal.say(f"trained generator: {run.path / 'generator'} ({duration(journal.elapsed_s)} in all)")
    rewards.close()


def leave(journal: Journal, versions: RewardVersions, rewards: RewardSource, done: int) -> None:
    """End this part of the training: the driver looks at the reward (`refresh.py`), and comes back with all ranks."""
    journal.leave()
    rewards.close()
    if journal.is_writer:
        versions.pause(done)


def ranks() -> tuple[int, int]:
    """(rank, world) of Ray Train's process group; (0, 1) without one."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def step_prompts(task: T2iTask, step: int, rank: int, world: int) -> StepPrompts:
    """This rank's prompts of a step (0-based): the list in random order, again and again, all ranks drawing the
    same."""
    import torch

    c, prompts = task.config.t2i, task.training
    chosen = []
    for slot in range(step * c.prompts_per_step, (step + 1) * c.prompts_per_step):
        epoch, place = divmod(slot, len(prompts))
        order = torch.randperm(len(prompts), generator=generator_of(task.config.run.seed, 0x0EDE, epoch))
        chosen.append(prompts[int(order[place])])
    places = tuple(range(rank, c.prompts_per_step, world))
    group = c.group_size if task.config.is_policy else 1
    seed = (task.config.run.seed, step)
    return StepPrompts(tuple(chosen[i] for i in places), places, seed, group, c.prompts_per_step)


def learning_rate(step: int, config: T2iConfig) -> float:
    """Linear warm-up, then constant.   step: 1-based."""
    return config.actor.lr * min(1.0, step / max(1, config.actor.warmup_steps))
