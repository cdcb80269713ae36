"""Tiny runs whose processes are killed at seeded random points, beside the same runs left alone.

    a run without faults                                   -> what its metrics must be
    the same run; after step k and a random while a worker of the next kind gets SIGKILL; a killed driver is started
    again with --resume                                    -> it ends, with the same metrics, and leaves nothing

Counted: groups (or images) that a step lost or had twice, steps that are missing or written twice, values that differ
from the undisturbed run, and what is left on the machine. All are to be 0.
Left out on purpose: lost machines. A worker that goes with its node looks the same to everybody else.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from zr_ray.errors import DeadlineError
from zr_ray.operate.victims import Held, held, leaked, victims
from zr_ray.run.folder import METRICS_FILE, RESULT_FILE
from zr_ray.run.observe import duration, say

GDSO_KINDS, T2I_KINDS = ("rollout", "learner"), ("learner", "replica")
"""What is killed in each run, beside drivers. A diffusion actor is Ray Train's learner."""
NAMES = {"rollout": "rollout worker", "learner": "learner", "replica": "reward replica", "driver": "driver"}
QUIET_S = 900.0
"""A run that takes no step for so long is lost: restarting engines beside other work on two cores takes minutes."""
KEPT = ("status", "rows", "noise_ceiling", "figures", "gsb", "steps", "weights")
"""What of a result is compared."""
UNEQUAL = ("time/", "rollout/recovered", "actor/memory_gib")
"""Metrics that are no function of the run's seed."""
GDSO = {
    "gdso.pairs_per_step": "8", "gdso.group_size": "2", "gdso.reference_refresh_steps": "2",
    "data.world.train_groups": "16", "data.world.test_groups": "4", "data.world.generated_train_groups": "0",
    "data.world.generated_test_groups": "0", "evaluation.every_steps": "3", "evaluation.bootstrap_resamples": "50",
    "evaluation.items": "8", "learner.warmup_steps": "1", "rollout.cpus": "0.5", "learner.cpus": "0.5",
    "rollout.threads": "1", "learner.threads": "1", "rollout.max_num_seqs": "64", "rollout.max_model_len": "160",
    "rollout.restarts": "9", "learner.restarts": "9",
}  # fmt: skip
T2I = {
    "generator.compiled": "false", "generator.steps": "3", "generator.micro_batch": "4", "prompts.held_out": "4",
    "held_out.watched": "2", "held_out.every_steps": "3", "held_out.beside": "false",
    "held_out.bootstrap_resamples": "20", "held_out.grid": "4", "actor.warmup_steps": "1", "actor.cpus": "0.5",
    "actor.restarts": "9", "reward.cpus": "0.5", "reward.in_flight": "1", "t2i.prompts_per_step": "2",
    "t2i.group_size": "2", "watch.action": "report", "actor.workers": "1",
}  # fmt: skip
"""Small enough for two cores. One actor, one reward call at a time: what is scored together does not depend on the
clock."""


@dataclass(frozen=True)
class Fault:
    """One kill."""

    kind: str
    after_step: int
    """The first moment when this step is in the metrics, and"""
    wait_frac: float
    """so many steps' time more."""


@dataclass
class Outcome:
    """A run and its faults."""

    job: str
    faults: list[dict] = field(default_factory=list)
    """Each with what was killed, when, and seconds until the next step was done."""
    seconds: float = 0.0
    exit_code: int | None = None
    counters: dict[str, int] = field(default_factory=dict)
    """Name -> count; 0 is promised for all."""
    details: dict[str, list[str]] = field(default_factory=dict)
    """Counter -> what was counted."""


def plan_faults(kinds: Sequence[str], seed: int) -> list[Fault]:
    """One fault for each entry of `kinds`, in an order and at points drawn from `seed`, a step or two apart."""
    draws, order = random.Random(seed), list(kinds)
    draws.shuffle(order)
    faults, step = [], 0
    for kind in order:
        step += draws.choice((1, 1, 2))
        faults.append(Fault(kind, step, draws.uniform(0.0, 1.5)))
    return faults


def command(job: str, folder: Path, name: str, steps: int, resume: bool) -> list[str]:
    """What a user would type for this run; once more with --resume."""
    settings = GDSO if job == "gdso" else T2I
    section = f"{job}.steps={steps}"
    told = [f"{key}={value}" for key, value in settings.items()]
    told += [section, "checkpoint.every_steps=2", f"run.root={folder}"]
    again = ["--resume", str(folder / name)] if resume else [f"run.name={name}"]
    return [sys.executable, "-m", "zr_ray", job, "--config", f"{job}_tiny", *told, *again]


class Run:
    """A run in processes of its own, killed and started again until it ends."""

    def __init__(self, job: str, folder: Path, name: str, steps: int, address: str) -> None:
        """address: of the cluster that it joins."""
        self.job, self.folder, self.name, self.steps = job, folder, name, steps
        self.environment = os.environ | {"RAY_ADDRESS": address}
        self.sessions: tuple[int, ...] = ()
        self.started_at = time.monotonic()
        self._start(resume=False)

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.folder / self.name

    def _start(self, resume: bool) -> None:
        told = command(self.job, self.folder, self.name, self.steps, resume)
        with open(self.folder / f"{self.name}.log", "a") as log:
            self.process = subprocess.Popen(
                told, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.sessions += (self.process.pid,)

    def steps_done(self) -> int:
        """The last step in its metrics; 0 before the first."""
        return max((line["step"] for line in self.lines()), default=0)

    def lines(self) -> list[dict]:
        """Complete lines of its metrics."""
        path = self.path / METRICS_FILE
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.is_file() else []

    def wait(self, step: int | None) -> bool:
        """Wait until `step` is done, or (None) until the run has ended; False if it ended before.

        Raises: DeadlineError if nothing comes for QUIET_S."""
        since, seen = time.monotonic(), self.steps_done()
        while True:
            done = self.steps_done()
            if step is not None and done >= step:
                return True
            if self.process.poll() is not None:
                return step is None
            if done != seen:
                since, seen = time.monotonic(), done
            if time.monotonic() - since > QUIET_S:
                raise DeadlineError(
                    f"{self.name} took no step for {duration(QUIET_S)}; see {self.folder}/{self.name}.log"
                )
            time.sleep(0.05)

    def hit(self, fault: Fault, step_s: float, draws: random.Random) -> dict:
        """Carry out a fault that is due; returns what was done."""
        time.sleep(fault.wait_frac * step_s)
        end = time.monotonic() + 120.0
        while not (found := victims(fault.kind, self.name, self.process.pid)):
            if time.monotonic() > end or self.process.poll() is not None:
                raise DeadlineError(
                    f"{self.name} has no {NAMES[fault.kind]} to kill; see {self.folder}/{self.name}.log"
                )
            time.sleep(0.2)
        pid = draws.choice(found)
        os.kill(pid, signal.SIGKILL)
        if fault.kind == "driver":
            self.process.wait(60)
            self._start(resume=True)
        return asdict(fault) | {"pid": pid, "at_step": self.steps_done(), "at_s": time.monotonic() - self.started_at}

    def end(self) -> None:
        """Kill what is left of it: after an error of this side only."""
        for session in self.sessions:
            try:
                os.killpg(session, signal.SIGKILL)
            except ProcessLookupError:
                pass


def disturbed(
    job: str, folder: Path, name: str, faults: Sequence[Fault], steps: int, address: str, seed: int
) -> tuple[Run, Outcome]:
    """Run to the end with these faults (none: undisturbed). Raises DeadlineError."""
    run, outcome, draws = Run(job, folder, name, steps, address), Outcome(job), random.Random(seed)
    try:
        for fault in faults:
            if not run.wait(fault.after_step):
                break
            spent = [line["time/step_s"] for line in run.lines()]
            done = run.hit(fault, statistics.median(spent), draws)
            outcome.faults.append(done)
            what = f"{NAMES[fault.kind]} {done['pid']}"
            say(f"{name}: killed {what} at {done['at_s']:.0f} s, after step {done['at_step']}")
            since = time.monotonic()
            run.wait(done["at_step"] + 1)
            done["recovered_s"] = time.monotonic() - since
        run.wait(None)
    except BaseException:
        run.end()
        raise
    outcome.exit_code, outcome.seconds = run.process.returncode, time.monotonic() - run.started_at
    say(f"{name}: exit code {outcome.exit_code} after {duration(outcome.seconds)}, {len(outcome.faults)} fault(s)")
    return run, outcome


def count(run: Run, outcome: Outcome, planned: int, undisturbed: Run, before: Held) -> None:
    """Fill in the outcome's counters.   before: what was there before the run."""
    lines, wanted = run.lines(), undisturbed.lines()
    details = {"runs that failed": [f"exit code {outcome.exit_code}"] if outcome.exit_code else []}
    details["faults not carried out"] = ["-"] * (planned - len(outcome.faults))
    steps = [line["step"] for line in lines]
    details["steps lost"] = [str(s) for s in range(1, run.steps + 1) if s not in steps]
    details["steps twice"] = [str(s) for s in sorted(set(steps)) if steps.count(s) > 1]
    unit, key, asked = _unit(outcome.job)
    got = {line["step"]: line[key] for line in lines}
    details[f"{unit} lost"] = [f"step {s}" for s, n in got.items() for _ in range(int(max(0, asked - n)))]
    details[f"{unit} twice"] = [f"step {s}" for s, n in got.items() for _ in range(int(max(0, n - asked)))]
    details["values that differ"] = differing(lines, wanted)
    results = [_rows(one.path / RESULT_FILE) for one in (run, undisturbed)]
    details["results that differ"] = [] if results[0] is not None and results[0] == results[1] else ["rows"]
    details |= {f"{name} left": texts for name, texts in leaked(before, run.sessions).items()}
    outcome.details = {name: texts[:20] for name, texts in details.items() if texts}
    outcome.counters = {name: len(texts) for name, texts in details.items()}


def differing(lines: Sequence[dict], wanted: Sequence[dict]) -> list[str]:
    """Metrics whose values are not, to the last bit, those of the undisturbed run, and by how much."""
    found, right = [], {line["step"]: line for line in wanted}
    for line in lines:
        other = right.get(line["step"], {})
        for name in sorted(set(line) | set(other)):
            one, two = line.get(name), other.get(name)
            if one != two and not name.startswith(UNEQUAL):
                found.append(f"step {line['step']} {name}: {one} instead of {two}")
    return found


def _unit(job: str) -> tuple[str, str, float]:
    """(what a step consists of, the metric that counts it, how many a step has)."""
    if job == "gdso":
        return "groups", "rollout/groups", 2.0 * int(GDSO["gdso.pairs_per_step"])
    return "images", "reward/images", float(int(T2I["t2i.prompts_per_step"]) * int(T2I["t2i.group_size"]))


def _rows(result: Path):
    """What a result says beside times and names."""
    if not result.is_file():
        return None
    found = json.loads(result.read_text())
    kept = {name: value for name, value in found.items() if name in KEPT}
    return kept


def chaos(job: str, kinds: Sequence[str], folder: Path, address: str, seed: int) -> list[Outcome]:
    """A run of `job` alone, then with one fault for each entry of `kinds`. Returns both outcomes."""
    faults = plan_faults(kinds, seed)
    steps = max((fault.after_step for fault in faults), default=0) + 2
    say(f"{job}: {steps} steps; " + ", ".join(f"{NAMES[f.kind]} after {f.after_step}" for f in faults))
    before = held()
    calm, first = disturbed(job, folder, f"{job}-calm", (), steps, address, seed)
    count(calm, first, 0, calm, before)
    if first.exit_code:
        return [first]
    before = held()
    run, outcome = disturbed(job, folder, f"{job}-chaos", faults, steps, address, seed)
    count(run, outcome, len(faults), calm, before)
    return [first, outcome]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: what was killed and how long it took; the counters."""
    lines = ["| run | killed | times | seconds to the next step, median (largest) |", "|---|---|---|---|"]
    for outcome in outcomes:
        for kind in dict.fromkeys(fault["kind"] for fault in outcome.faults):
            took = [f["recovered_s"] for f in outcome.faults if f["kind"] == kind and "recovered_s" in f]
            text = f"{statistics.median(took):.0f} ({max(took):.0f})" if took else "-"
            name = "diffusion actor" if (outcome.job, kind) == ("t2i", "learner") else NAMES[kind]
            lines.append(f"| {outcome.job} | {name} | {len(took)} | {text} |")
    rows = list(dict.fromkeys(name for outcome in outcomes for name in outcome.counters))
    heads = [f"{o.job}, {'chaos' if o.faults else 'undisturbed'}" for o in outcomes]
    lines += ["", "| counter | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in rows:
        lines.append(f"| {name} | " + " | ".join(str(o.counters.get(name, "")) for o in outcomes) + " |")
    lines.append("| seconds | " + " | ".join(f"{o.seconds:.0f}" for o in outcomes) + " |")
    return "\n".join(lines)
