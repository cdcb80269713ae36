"""Which runs the table needs and where each of them stands. A run is one command line of an ordinary job with its own run folder.

Order: bases first, then seed after seed with every row of every judge, so that what is there after an interruption can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zr_ray.config import GdsoConfig
from zr_ray.config_evaluate import EvaluateConfig
from zr_ray.config_loader import differing_keys, load_config
from zr_ray.config_reproduce import ReproduceConfig
from zr_ray.config_sft import SftConfig
from zr_ray.errors import CheckpointError
from zr_ray.run_folder import CONFIG_FILE, RESULT_FILE

BASE = "base"
"""Row name of the untrained judge's evaluation."""
CONFIG_CLASSES = {"gdso": GdsoConfig, "sft": SftConfig, "evaluate": EvaluateConfig}


@dataclass(frozen=True)
class PlannedRun:
    """One run of one job."""

    judge: str
    """Size name."""
    row: str
    """Row name, or "base"."""
    seed: int
    job: str
    """"gdso", "sft" or "evaluate"."""
    folder: Path
    """Its run folder."""
    config: Path | None
    """Named run, or None for the job's defaults."""
    overrides: tuple[str, ...]
    probe: bool = False
    """An evaluation of the trained judge of (judge, row, seed)."""

    @property
    def name(self) -> str:
        """For log lines."""
        what = {True: f"probe of {self.row}"}.get(self.probe, self.row)
        return f"{what}, {self.judge}" + ("" if self.row == BASE else f", seed {self.seed}")

    def resolved(self):
        """The configuration it runs under. Raises ConfigError."""
        return load_config(CONFIG_CLASSES[self.job], self.config, list(self.overrides))

    def command(self, resume: bool) -> list[str]:
        """Arguments of jobs/<job>.py."""
        words = ["--config", str(self.config)] if self.config else []
        return [*words, *(["--resume", str(self.folder)] if resume else []), *self.overrides]


def planned_runs(config: ReproduceConfig, judges: dict[str, Path], root: Path, configs: Path) -> list[PlannedRun]:
    """Every run, in order.

    Args: judges: size name -> folder of those that are there. root: folder of this reproduction; holds data/, data-anchors/, rows/.
        configs: folder that the rows' `config` starts at.
    Raises: ConfigError if a run's configuration does not load."""
    c = config.reproduce
    data, rows = config.data.path or root / "data", root / "rows"
    runs = [
        PlannedRun(name, BASE, config.run.seed, "evaluate", rows / f"{BASE}-{name}", None, _run(rows, f"{BASE}-{name}", config.run.seed)
                   + (f"judge.path={folder}", f"data.path={data}", *c.probe_overrides, "evaluate.mode=both"))
        for name, folder in judges.items()
    ]  # fmt: skip
    for seed in c.seeds:
        for judge, folder in judges.items():
            for row, choice in c.rows.items():
                name = f"{row}-{judge}-s{seed}"
                overrides = (
                    *_run(rows, name, seed), f"judge.path={folder}", f"data.path={root / 'data-anchors' if choice.anchors else data}",
                    f"{choice.job}.steps={c.steps}", f"{choice.job}.pairs_per_step={c.pairs_per_step}", "evaluation.before=false",
                    *c.overrides, *choice.overrides,
                )  # fmt: skip
                runs.append(PlannedRun(judge, row, seed, choice.job, rows / name, configs / choice.config, overrides))
                if row in c.probes:
                    name = f"probe-{name}"
                    overrides = (
                        *_run(rows, name, seed), f"judge.path={rows / f'{row}-{judge}-s{seed}' / 'judge'}", f"data.path={data}",
                        "evaluate.mode=reasoning", *c.probe_overrides,
                    )  # fmt: skip
                    runs.append(PlannedRun(judge, row, seed, "evaluate", rows / name, None, overrides, probe=True))
    for run in runs:
        run.resolved()
    return runs


def _run(rows: Path, name: str, seed: int) -> tuple[str, ...]:
    return f"run.root={rows}", f"run.name={name}", f"run.seed={seed}"


def state(run: PlannedRun) -> str:
    """"finished", "interrupted" or "missing".

    Raises: CheckpointError if the folder holds a run under another configuration: it would not be the row it is named after."""
    if not (run.folder / CONFIG_FILE).is_file():
        return "missing"
    stored = load_config(CONFIG_CLASSES[run.job], run.folder / CONFIG_FILE, [])
    differing = [key for key in differing_keys(stored, run.resolved()) if not (key.startswith("run.") or key.endswith("deadline_s"))]
    if differing:
        raise CheckpointError(
            f"{run.folder} was run under another configuration: {', '.join(differing)} differ; put them back, or remove that folder"
        )
    return "finished" if (run.folder / RESULT_FILE).is_file() else "interrupted"
