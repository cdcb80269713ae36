"""Text-to-image post-training, on every diffusion actor: sample, ask the reward service, update, look at held-out
images, save.

Runs inside Ray Train. Each rank samples and scores its own share of a step's prompts; nothing passes through the
driver. Every random choice is a function of (run seed, step, place), so a resumed run repeats what the killed one would
have done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zr_ray.config.t2i import T2iConfig
from zr_ray.loops.t2i_flow_grpo import FlowGrpo
from zr_ray.loops.t2i_gradient import RewardGradient
from zr_ray.loops.t2i_journal import T2iJournal
from zr_ray.loops.t2i_nft import Nft
from zr_ray.loops.t2i_rollout import StepPrompts
from zr_ray.serving.reward_source import open_source
from zr_ray.workers.generator import GeneratorWorker, generator_of

if TYPE_CHECKING:
    from zr_ray.loops.launch_t2i import T2iTask

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
    c = config.t2i
    rank, world = ranks()
    worker = GeneratorWorker(task.generator, config.generator, config.actor, rank, world)
    rewards = open_source(config.reward, task.reward_target)
    journal = T2iJournal(task, worker, rewards)
    algorithm = ALGORITHMS[c.algorithm](config, worker, rewards, journal.timer)

    start = step = journal.restore()
    journal.looks.look_before()
    stop = journal.watched_state["stopped"]

    for step in range(start + 1, c.steps + 1):
        if stop or journal.out_of_time:
            step -= 1
            break
        metrics = algorithm.step(step_prompts(task, step - 1, rank, world), learning_rate(step, config))
        if config.held_out.every_steps and step % config.held_out.every_steps == 0:
            journal.look_during(step)
            stop = stopped(journal, config)
        journal.step(step, metrics)
        if stop or step % config.checkpoint.every_steps == 0 or step == c.steps:
            journal.save(step)
    journal.finish(step)
    rewards.close()


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
    return StepPrompts(tuple(chosen[i] for i in places), places, (task.config.run.seed, step), group)


def learning_rate(step: int, config: T2iConfig) -> float:
    """Linear warm-up, then constant.   step: 1-based."""
    return config.actor.lr * min(1.0, step / max(1, config.actor.warmup_steps))


def stopped(journal: T2iJournal, config: T2iConfig) -> str:
    """Why the watch ends the run, or nothing."""
    alarms = journal.watched_state["alarms"]
    if config.watch.action == "stop" and alarms >= config.watch.patience:
        journal.watched_state["stopped"] = f"hacking watch: {alarms} alarms in a row"
        journal.say(
            f"stopping: {alarms} alarms in a row; the best weights are those of step"
            f" {journal.watched_state['best_step']}"
        )
    return journal.watched_state["stopped"]
