"""The sections that jobs share, as typed frozen models: one per concern. Those of workers are in `workers.py`, what
trainings have in common in `training.py`; each job has a file with its own.

Every field states its meaning, unit and the origin of its default; `loader.schema_help` prints them for `--help`.
Left out on purpose: defaults that depend on the machine, and Hydra-style composition; a named run is one YAML file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Tracker = Literal["tensorboard", "wandb", "mlflow"]


def field(default: Any, description: str, why: str = "", **limits: Any) -> Any:
    """A pydantic Field; `why` is the reason behind its limit and ends up in the error message."""
    return Field(default, description=description, json_schema_extra={"why": why} if why else None, **limits)


class Section(BaseModel):
    """Unknown keys are refused, values are checked, nothing can be changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    name: str | None = field(
        None,
        "id of the run folder; null makes one from job, date, time and four random characters",
        pattern=r"^\w[\w.\-]*$",
    )
    root: Path | None = field(
        None,
        "absolute folder of all run folders; null: `runs` in the submitter's checkout, else the environment's ZR_RUNS",
    )
    seed: int = field(0, "seeds data order, sampling and bootstrap of the whole job", ge=0, lt=2**31)
    resume: Literal["latest"] | Path | None = field(
        None, "continue the newest run (`latest`), or this run folder (a path, or an id under run.root)"
    )

    gpu_gib: float | None = field(
        None,
        "memory of one GPU, GiB, for instance 80: a plan that cannot fit is refused; null: memory is printed only",
        gt=0,
    )
    wait_for_nodes_s: float = field(
        0.0, "seconds to wait for nodes that an autoscaler may still add; 0 refuses what the cluster cannot hold", ge=0
    )
    wait_for_room_s: float = field(600.0, "seconds to wait while others hold what this job needs", ge=0)

    @property
    def room_deadline_s(self) -> float:
        """Seconds until the job's resources must be granted, whether nodes or other jobs are waited for."""
        return max(self.wait_for_nodes_s, self.wait_for_room_s)

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path | None) -> Path | None:
        if root is not None and not root.is_absolute():
            raise ValueError(
                f"must be an absolute path, got {root}: a job runs in a temporary copy of the working directory"
            )
        return root


class TrackedRunSection(RunSection):
    """A run with curves."""

    trackers: tuple[Tracker, ...] = field(
        ("tensorboard",),
        "who draws its curves, under the names of metrics.jsonl: tensorboard, wandb, mlflow, each an extra of its name"
        " but the first",
    )
    trackers_offline: bool = field(
        True,
        "nothing leaves the machine: W&B writes into the run folder, for `wandb sync`, MLflow into `mlruns` under"
        " run.root; false: W&B's server (WANDB_API_KEY) and MLFLOW_TRACKING_URI",
    )
    tracker_project: str = field(
        "zr_ray", "project of W&B, experiment of MLflow", pattern=r"^\w[\w.\-]*$", max_length=128
    )

    @field_validator("trackers")
    @classmethod
    def _once(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"must name each tracker once, got {list(trackers)}")
        return trackers


class JudgeSection(Section):
    """The model that is trained."""

    path: str = field(
        "builtin",
        "a judge inside the package (`builtin`, `small`, `base`, `teacher`, `student`, `student_distilled`) or a"
        " Hugging Face folder of a Qwen3-VL or Qwen3.5 model",
    )


class WorldSection(Section):
    """Size of the built-in simulated world, used when data.path is null."""

    train_groups: int = field(700, "prompts with training labels", ge=1)
    test_groups: int = field(
        250,
        "prompts with five simulated annotators each; on 1,000 images a mean HPA has a standard error of about 0.7"
        " points",
        ge=1,
    )
    dev_groups: int = field(
        0,
        "prompts for choosing hyper-parameters, annotated like the test split; evaluation.split=dev judges them",
        ge=0,
    )
    candidates: int = field(4, "images per prompt", ge=2, why="to form same-prompt pairs")
    generated_train_groups: int = field(
        0, "further training prompts, with images of the built-in generator (packed in the package: up to 240)", ge=0
    )
    generated_test_groups: int = field(
        0, "further test prompts with images of the built-in generator, all held out (up to 100)", ge=0
    )
    seed: int = field(1, "seed of prompts, images and annotators; independent of run.seed", ge=0)


class DataSection(Section):
    """Annotated images in the on-disk format of zr_ray.data."""

    path: Path | None = field(
        None, "folder of the annotated data set; null writes the simulated rubric world into the run folder"
    )
    world: WorldSection = Field(default_factory=WorldSection)


class EvaluationSection(Section):
    """The held-out set, judged before, during and after training."""

    every_steps: int = field(20, "steps between evaluations; 0: only before and after", ge=0)
    split: Literal["dev", "test"] = field("test", "split that is judged")
    before: bool = field(
        True, "judge the untrained judge first; false saves that time where its rows are known from elsewhere"
    )
    samples: int = field(
        0,
        "traces per question: 0 one greedy trace, n sampled traces whose distributions are averaged (4 added 3 HPA"
        " points in prototypes)",
        ge=0,
    )
    sampled: int = field(
        0,
        "judge the trained judge a second time, with so many sampled traces per question, as a row of its own beside"
        " that of `samples`; judges with reasoning only. 0: no",
        ge=0,
    )
    bootstrap_resamples: int = field(1000, "resamples over prompts for each 95 % interval", ge=20)
    items: int | None = field(
        None,
        "evaluations during training judge only the first so many images; null: all. Before and after: always all",
        ge=2,
    )
    batch_items: int = field(256, "images sent to the rollout actors at a time", ge=1)


class CheckpointSection(Section):
    """What a resumed run starts from."""

    every_steps: int = field(20, "steps between checkpoints; one is always written after the last step", ge=1)
    keep: int = field(2, "newest checkpoints that stay on disk", ge=1)
