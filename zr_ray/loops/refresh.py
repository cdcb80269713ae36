"""Reward refresh: the student that rewards a text-to-image run is held against its teacher on the run's newest images;
where the two have drifted apart it is distilled again, and the run's service is rolled to it.

    training reaches a look's step, writes a checkpoint, and its actors leave: a look needs their resources
      -> images of that checkpoint, of prompts that no student learns from and of others       loops/run_images.py
      -> the teacher labels the former, the service scores them: are they ordered alike?       judging/three_way.py
      -> if not, the teacher labels the others too, and the student is distilled on all images of this run so far,
         stopped by the prompts that it does not learn from                                    loops/distillation.py
      -> if it is better there, it is RUN/reward/v<n>: the service takes it, a probe proves it   serving/roll.py
      -> the actors come back to their checkpoint and go on

All of it runs in the driver, with its own loops and in the job's cluster; training waits. Each part keeps what it made
(images, labels, checkpoints of the distillation), so a look that was interrupted is made again from there.
Left out on purpose: training on while the student is distilled; it takes resources for both at once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from zr_ray.config.audit import AuditConfig
from zr_ray.config.risd import RisdConfig
from zr_ray.config.serve import ServeConfig
from zr_ray.config.t2i import T2iConfig
from zr_ray.data.run_data import load_checked_split
from zr_ray.errors import CheckpointError, JudgeError, StoppedError
from zr_ray.judging.pool import score_pool
from zr_ray.judging.three_way import drifted, three_way
from zr_ray.loops.distillation import Found, distil, open_labels
from zr_ray.loops.held_out_taught import labeled
from zr_ray.loops.refresh_plan import distillation_config, distillation_phases
from zr_ray.loops.reward_versions import RewardVersions, Version, drift_reasons, not_taken
from zr_ray.loops.run_images import find_generator_run, run_images
from zr_ray.models.engine_limits import settled
from zr_ray.models.identity import judge_hash
from zr_ray.models.item_check import JudgeItemCheck
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import AnnotatedImage
from zr_ray.report.refresh_page import look_text
from zr_ray.run.folder import CONFIG_FILE, RESULT_FILE, RunFolder
from zr_ray.run.launch import Started
from zr_ray.run.observe import duration, say
from zr_ray.run.room import Room, reserve
from zr_ray.serving.roll import prove, require_version, roll, served_scores, with_judge

PROBED = 8
"""Images that the service and the folder are both asked about after an update."""
RESAMPLES = 1000
"""Over prompts, for the interval of a look."""


def train_and_refresh(train: Callable[[float | None, Room], None], refresher: Refresher, room: Room) -> None:
    """Training, and between its parts the looks that it leaves for.

    Args: train: runs the actors in `room` until the end or the next look; its number is the time.time() from which the
        part's seconds count, None: from the job's start. room: what the job reserved; a look takes the actors' part."""
    run, settings = refresher.run, refresher.config.run
    if refresher.versions.pending is None:
        train(None, room)
    else:  # a resumed run, whose look was interrupted
        room.hand_over("actor")
        room.settled()
    while (step := refresher.versions.pending) is not None:
        since = time.time()
        refresher.look(step)
        with reserve(run.run_id, {"actor": refresher.actors}, settings.room_deadline_s) as again:
            train(since, again)


@dataclass(frozen=True)
class Refresher:
    """What a look needs of its run. In the driver, while the run's service is up."""

    config: T2iConfig
    run: RunFolder
    teacher: Path
    first: Path
    """Folder of version 0 of the student."""
    service: ServeConfig
    """The run's own."""
    target: str
    """Its name."""
    actors: Sequence[dict[str, float]]
    """Bundles of the diffusion actors."""

    @property
    def versions(self) -> RewardVersions:
        """Of the run."""
        return RewardVersions(self.run.path)

    @cached_property
    def text(self) -> JudgeText:
        """Tokenizer side of the teacher; its rubric is the student's."""
        return JudgeText(self.teacher)

    def look(self, step: int) -> None:
        """Hold the current student against its teacher after `step`, whose checkpoint is there, and distil it again if
        they have drifted apart. The entry of `RewardVersions.looks` is written at the end.

        Raises: what its parts raise; the run can then be resumed, and the look is made again."""
        started, c, versions = time.time(), self.config.reward.refresh, self.versions
        number, judge = versions.number, versions.judge(self.first)
        say(f"reward look after step {step}: training waits while v{number} is held against its teacher {self.teacher}")
        made_by = find_generator_run(str(self.run.path), self.run.path.parent)
        if made_by.step != step:
            raise CheckpointError(
                f"the look after step {step} needs that step's checkpoint, the newest is of step {made_by.step}; remove"
                f" {versions.folder / 'paused.json'} to train on from there"
            )
        folder = run_images(made_by, c.images, versions.folder, self.run.run_id, self.config.run.wait_for_nodes_s)
        told = distillation_config(self.config, self.run, versions.distilled + 1, judge, self.teacher)
        items, taught = self._taught(folder, told)
        student = self._served(items, versions.numbers(), number)
        order = three_way(student, taught, items, self.text.rubric, RESAMPLES, self.config.run.seed)
        reasons = drift_reasons(order, c, self.config.reward.weights, versions.best)
        pooled = order["pooled"]["student/teacher"]
        look = {"step": step, "version": number, "images": len(items), "accuracy": pooled["accuracy"]}
        look |= {"ci": pooled["ci"], "pairs": pooled["pairs"], "order": order, "reasons": reasons, "refresh": None}
        look["teacher_problems"] = drifted(order, c.pair_limit)[1]
        say(f"reward look after step {step}: {look_text(look)}")
        for line in look["teacher_problems"]:
            say(f"warning: {line}")
        taken = None
        if reasons:
            look["refresh"], taken = self._refresh(step, told, made_by, items, taught, reasons)
        elif pooled["accuracy"] is None:
            say("warning: no two images of a prompt differ by the teacher, so this look says nothing")
        versions.record(look | {"seconds": time.time() - started}, taken)
        say(f"reward look after step {step} done in {duration(time.time() - started)}; training goes on")

    # ---- the look ----

    def _taught(self, folder: Path, told: RisdConfig) -> tuple[list[AnnotatedImage], Tensor]:
        """(images of prompts that no student learns from, [I, D] mu of the teacher)."""
        from zr_ray.judging.label import label_items, labeling_bundles

        check = JudgeItemCheck.of_engine(self.text, told.rollout)
        items, _ = load_checked_split(folder, "test", check)
        labels = open_labels(told, self.teacher, self.text, self.versions.folder)
        with reserve(self.run.run_id, labeling_bundles(told.rollout), self.config.run.room_deadline_s):
            pass  # Ray Data places itself, and waits for ever for what is not free
        rollout = settled(told.rollout, self.teacher, check.need)
        known = label_items(items, labels, self.teacher, rollout, told.label, say)
        return items, labeled(items, known, self.text.rubric).mu

    def _served(self, items: Sequence[AnnotatedImage], known: Mapping[str, int], number: int) -> Tensor:
        """[I, D] mu of version `number`, which the service must hold. known: hash -> number."""
        dimensions = self.text.rubric.dimensions
        mu, hashes = served_scores(self.target, items, dimensions, self.config.reward.start_deadline_s)
        require_version(hashes, known, number)
        return mu

    # ---- the new version ----

    def _refresh(
        self, step: int, told: RisdConfig, made_by, items: Sequence[AnnotatedImage], taught: Tensor, reasons: list[str]
    ) -> tuple[dict, Version | None]:
        """(the entry "refresh" of a look, the version that was taken or None)."""
        started, c = time.time(), self.config.reward.refresh
        number = self.versions.number + 1
        say(f"reward refresh {self.versions.distilled + 1} of at most {c.most}: {'; '.join(reasons)}")
        result, judge = self._distilled(told, made_by)
        unseen = {int(at): share for at, share in result.get("unseen_pairs", {}).items()}
        why = result.get("problem") or not_taken(unseen, result["best_step"], c.smallest_gain)
        entry = {"learned": result["distillation"]["items"], "taken": None, "why_not": why, "accuracy": None}
        if unseen:
            entry |= {"before": unseen[0], "after": unseen[result["best_step"]], "best_step": result["best_step"]}
        if why:
            say(f"reward refresh: v{number - 1} goes on, the distilled student is not taken: {why}")
            return entry | {"seconds": time.time() - started}, None
        folder = self.versions.take(judge, number)
        proof = self._roll_to(folder, items)
        version = Version(number, judge_hash(folder), step)
        mu = self._served(items, {version.sha256: number}, number)
        again = three_way(mu, taught, items, self.text.rubric, RESAMPLES, self.config.run.seed)
        entry |= {"taken": number, "sha256": version.sha256, "proof": proof, "order": again}
        entry["accuracy"] = again["pooled"]["student/teacher"]["accuracy"]
        say(
            f"reward refresh: v{number} is {folder}; unseen prompts {entry['before']:.1%} to {entry['after']:.1%}; the"
            f" service answers as {version.sha256[:12]}, {proof['largest_difference']:.1e} points from the folder"
        )
        return entry | {"seconds": time.time() - started}, version

    def _distilled(self, told: RisdConfig, made_by) -> tuple[dict, Path]:
        """(result.json, judge folder) of a distillation that is made, gone on with, or there."""
        from zr_ray.loops.risd import train

        path = told.run.root / told.run.name
        if path.is_dir() and not (path / CONFIG_FILE).is_file():
            shutil.rmtree(path)  # killed while the folder was being made
        run = RunFolder.open(path, told) if path.is_dir() else RunFolder.create(told.run.root, path.name, told, "risd")
        if not (path / RESULT_FILE).is_file():
            found = Found(self.versions.folder, self.teacher, self.text, Path(told.judge.path), None, made_by)
            started = Started(run, time.time(), "", distillation_phases(told))
            try:
                distil(told, train, "none", True, found, started)
            except StoppedError as error:
                raise StoppedError(
                    f"stopped on request while the reward was distilled; continue with --resume {self.run.run_id}"
                ) from error
            except JudgeError:
                # a student that came apart has its result, and is not taken; anything else ends the run
                if not (path / RESULT_FILE).is_file():
                    raise
        return run.read_result(), run.judge

    def _roll_to(self, judge: Path, items: Sequence[AnnotatedImage]) -> dict[str, float]:
        """Update the run's service, and prove it. Returns: of `prove`."""
        service, probes = with_judge(self.service, judge), list(items[:PROBED])
        here = self._of_folder(judge, probes)  # before the update: both need room
        roll(service, self.target)
        return prove(self.target, judge, here, probes, service, self.text.rubric.dimensions)

    def _of_folder(self, judge: Path, items: list[AnnotatedImage]) -> Tensor:
        """[I, D] mu of a judge folder, by a worker of its own where the learners were."""
        c, replica = self.config.reward.refresh.learner, self.service.replica
        where = {"cpus": c.cpus, "gpus": c.gpus, "resource": c.resource, "threads": c.threads, "dtype": replica.dtype}
        run = {"wait_for_nodes_s": self.config.run.wait_for_nodes_s}
        asked = AuditConfig.model_validate({"run": run, "student": where})
        rubric = self.text.rubric
        log_q = score_pool(self.run, judge, items, asked, rubric)
        return log_q.exp() @ torch.tensor(rubric.bins, dtype=torch.float64)
