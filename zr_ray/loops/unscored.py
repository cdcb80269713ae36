"""When a judge's outputs reach no score: what they look like, and what to do. The usual first run of a chat model that
was never told the format.

A step without one scored output is not trained on: its loss would be 0 while the optimizer's moments still move the
weights. After a few such steps in a row the run stops as FAILED.
"""

from __future__ import annotations

from collections.abc import Sequence

from zr_ray.errors import RolloutError
from zr_ray.loops.journal import Journal
from zr_ray.models.judge_text import JudgeText
from zr_ray.records import Judgement
from zr_ray.rubric import FORMAT_FILE

SHOWN_CHARS = 160
"""Of an output's end in a message; the format is at the end."""


class UnscoredSteps:
    """Counts steps in a row without one scored output, on every rank."""

    def __init__(self, journal: Journal, text: JudgeText, max_new_tokens: int, allowed: int) -> None:
        """allowed: such steps in a row before the run stops."""
        self.journal, self.text, self.max_new_tokens, self.allowed = journal, text, max_new_tokens, allowed
        self.seen = 0

    def check(self, step: int, scored: float, outputs: float, groups: Sequence[Sequence[Judgement]]) -> bool:
        """Whether step `step` (1-based) can be trained on; says why if not.

        Args: scored, outputs: of all ranks. groups: of this rank, for examples.
        Raises: RolloutError on all ranks, after the result says FAILED, when there were too many such steps."""
        if scored:
            self.seen = 0
            return True
        self.seen += 1
        judgements = [j for group in groups for j in group]
        advice = unscored_advice(judgements, self.text, self.max_new_tokens)
        lines = [f"step {step}: none of {outputs:.0f} outputs has a score, nothing is trained on", *advice]
        if self.seen == 1:
            for line in lines:
                self.journal.say(line)
        if self.seen >= self.allowed:
            problem = f"no output had a score in {self.seen} steps in a row; {advice[-1]}; {self.journal.kept()}"
            self.journal.finish("gdso", {"status": "FAILED", "problem": problem})
            raise RolloutError(f"step {step}: {problem}")
        return False


def unscored_advice(judgements: Sequence[Judgement], text: JudgeText, max_new_tokens: int) -> list[str]:
    """Two outputs as they end, then what to do, a line each."""
    cut = [len(j.token_ids) >= max_new_tokens for j in judgements]
    shown = [_shown(j, text) for j in judgements[:2]]
    label = text.format.labels[len(text.format.labels) // 2]
    wanted = f"{text.format.marker}{label}".strip()
    after = " behind </think>" if text.thinks else ""
    if sum(cut) > len(cut) / 2:
        advice = (
            f"{sum(cut)} of {len(cut)} outputs were cut at rollout.max_new_tokens={max_new_tokens}: raise it (traces of"
            " the paper's judges have about 750 tokens)"
        )
    else:
        advice = (
            f"outputs end without '{wanted}'{after}: ask for it (`system` and `questions` in {FORMAT_FILE}), take the"
            " `marker` that the model writes anyway, or teach the format first with jobs/sft.py sft.reasoning=true"
        )
    return [*shown, advice]


def _shown(judgement: Judgement, text: JudgeText) -> str:
    words = " ".join(text.tokenizer.decode(judgement.token_ids).split())
    end = words if len(words) <= SHOWN_CHARS else f"... {words[-SHOWN_CHARS:]}"
    return f"    {judgement.key}, {len(judgement.token_ids)} tokens: {end!r}"
