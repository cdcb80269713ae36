"""Stops a distillation when the student gets no better on prompts that it does not learn from; hands out the best one.

A student learns a few thousand labels by heart: the order on its own prompts goes on rising while that on others falls.
The start counts too: where learning only harms, the student stays as it was.

    <run>/unseen.json   {"<step>": share of same-prompt pairs ordered as the teacher does}
          best/step_*   the learner at the best of them; what is handed out
"""

from __future__ import annotations

import json

from zr_ray.errors import DataError
from zr_ray.loops.journal import Journal
from zr_ray.run.checkpoints import begin_checkpoint, finish_checkpoint, latest_checkpoint, temporary_folder
from zr_ray.workers.learner import Learner

UNSEEN_FILE, BEST = "unseen.json", "best"


class UnseenStop:
    """One rank's; all ranks call its verbs together, with the same values."""

    def __init__(self, journal: Journal, learner: Learner, patience: int) -> None:
        """patience: evaluations in a row without a better one; 0 never stops and keeps nothing."""
        self.journal, self.learner, self.patience = journal, learner, patience
        self.folder = journal.run.path / BEST
        self.seen: dict[int, float] = {}

    def restore(self, step: int) -> None:
        """Go on after `step` (1-based): what was seen later is forgotten."""
        path = self.journal.run.path / UNSEEN_FILE
        if self.patience and step and path.is_file():
            held = json.loads(path.read_text())
            self.seen = {int(at): value for at, value in held.items() if int(at) <= step}

    def see(self, step: int, accuracy: float) -> None:
        """An evaluation after `step` (0: before training). Raises DataError where there are no pairs to see by."""
        if not self.patience:
            return
        if accuracy != accuracy:
            raise DataError(
                "risd.patience needs prompts with two images or more that the teacher tells apart in the evaluation"
                " split, there are none; add some, or set risd.patience=0"
            )
        better = not self.seen or accuracy > self.seen[self.best_step]
        self.seen[step] = accuracy
        if self.journal.is_writer:
            self.journal.run.write_json(UNSEEN_FILE, {str(at): value for at, value in self.seen.items()})
        if better:
            self._keep(step)
        self.journal.say(
            f"step {step}: {accuracy:.1%} of same-prompt pairs ordered as the teacher does, on prompts not learned"
            f" from; best {self.seen[self.best_step]:.1%} at step {self.best_step}"
        )

    @property
    def best_step(self) -> int:
        """The first step with the highest share."""
        return max(self.seen, key=lambda step: (self.seen[step], -step))

    def over(self) -> bool:
        """Whether `patience` evaluations came after the best one."""
        return bool(self.patience and self.seen) and sum(at > self.best_step for at in self.seen) >= self.patience

    def take_best(self) -> dict:
        """Give the learner the weights of the best step. Returns: further keys of result.json."""
        if not self.seen:
            return {}
        found = latest_checkpoint(self.folder)
        if found is not None and found[0] == self.best_step:
            self.learner.load(found[1])
        else:  # a resumed run whose best step lies before its checkpoint, under a later one that was undone
            self.journal.say(f"the weights of step {self.best_step} are gone; the last ones are handed out")
        self.learner.barrier()
        return {"unseen_pairs": {str(at): value for at, value in self.seen.items()}, "best_step": self.best_step}

    def _keep(self, step: int) -> None:
        if self.journal.is_writer:
            begin_checkpoint(self.folder, step)
        self.learner.barrier()
        temporary = temporary_folder(self.folder, step)
        self.learner.save(temporary, {"step": step})
        if self.journal.is_writer:
            finish_checkpoint(temporary, keep=1)
        self.learner.barrier()
