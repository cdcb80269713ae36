"""The `reward` section of `jobs/t2i.py`: one judge, one function, or several sources beside each other.

Left out on purpose: what a source is (`reward_sources.py`), and the service's own configuration (`serve.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from zr_ray.config.refresh import RefreshSection
from zr_ray.config.reward_sources import CLIP_SCORES, SourceSection, same_names
from zr_ray.config.sections import Section, field
from zr_ray.config.workers import RESOURCE
from zr_ray.rubric import DIMENSIONS

OF_SOURCE = "."
"""Between the name of a source and that of its score, where there are several sources."""


class RewardSourceSection(SourceSection):
    """One of several reward sources: what it is, what its scores weigh, what its deployment asks Ray for."""

    weights: dict[str, float] = field(
        {},
        "name of one of its scores -> its weight in the reward; empty: 1 for each dimension of a judge, 1 for a CLIP"
        " scorer's logit. With weights of 0 alone it is watched, and not trained on",
    )
    replicas: int = field(1, "replicas", ge=1)
    cpus: float = field(1.0, "CPU cores of a replica", gt=0)
    gpus: float = field(0.0, "GPUs of a replica", ge=0)
    resource: str | None = field(None, "custom resource a node must offer; null: any", pattern=RESOURCE)
    threads: int = field(1, "torch threads of a replica", ge=1)
    dtype: Literal["float32", "bfloat16"] = field("float32", "what a judge or CLIP scorer computes in")

    @model_validator(mode="after")
    def _named_scores(self) -> RewardSourceSection:
        if self.clip is not None and (unknown := [name for name in self.weights if name not in CLIP_SCORES]):
            raise ValueError(
                f"reward source {self.name}: a CLIP scorer says {' and '.join(CLIP_SCORES)}, weights has {unknown}"
            )
        if not self.weights:
            known = DIMENSIONS if self.judge is not None else CLIP_SCORES[:1] if self.clip is not None else ()
            if not known:
                raise ValueError(f"reward source {self.name}: weights must name the scores it says, got none")
            object.__setattr__(self, "weights", dict.fromkeys(known, 1.0))
        return self

    @property
    def differentiates(self) -> bool:
        """Whether it offers the gradient; of one that another service holds only that service knows."""
        return self.function is None or self.differentiable


class RewardSection(Section):
    """Who scores the images, and what their scores are put together to."""

    sources: tuple[RewardSourceSection, ...] = field(
        (),
        "several sources instead of one judge, each a deployment of its own: name, one of judge, clip and function,"
        " weights, replicas, cpus, gpus. Its scores are called <name>.<score>. With reward.target: names of"
        " deployments there",
    )

    target: str | None = field(
        None, "name of a running Serve application or URL of a reward service; null: the job starts its own"
    )
    judge: str = field(
        "student", "judge of the job's own service: `student`, `student_distilled` or a Hugging Face folder"
    )
    function: str | None = field(
        None,
        "package.module:callable instead of a judge: (images [N, H, W, 3] uint8, prompts) -> name -> [N]; scores"
        " only, in the actor",
    )
    replicas: int = field(1, "replicas of the job's own service", ge=1)
    cpus: float = field(1.0, "CPU cores of a replica", gt=0)
    gpus: float = field(0.0, "GPUs of a replica", ge=0)
    resource: str | None = field(
        None, "custom resource a node must offer to hold a replica, for example zr_reward; null: any", pattern=RESOURCE
    )
    threads: int = field(1, "torch threads of a replica", ge=1)
    dtype: Literal["float32", "bfloat16"] = field("float32", "what the judge computes in")
    weights: dict[str, float] = field(
        dict.fromkeys(DIMENSIONS, 1.0), "name of a score -> its weight in the reward", min_length=1
    )
    aggregation: Literal["sum", "worst", "gdpo", "parsed"] = field(
        "sum",
        "weighted sum; lowest dimension; per-dimension group z-scores (GDPO); most probable labels instead of mu"
        " (scalar baseline)",
    )
    blind: Literal["refuse", "accept"] = field(
        "refuse",
        "what a dimension does that orders the untrained generator's images no better than chance: end the run before"
        " training, or be said and used",
    )
    risk: float = field(0.0, "k of mu - k sigma: an uncertain judge counts for less", ge=0)
    threshold: float | None = field(
        None, "gradient family: images above this reward get no gradient (ReFL's hinge); null: all do"
    )
    balance: bool = field(
        False,
        "gradient family: the gradient of every score is brought to one size before they are weighed and summed, so"
        " that a steep one does not own the update; costs a backward of the judge per score",
    )
    in_flight: int = field(4, "reward calls of one actor under way; more wait", ge=1)
    items_per_call: int = field(16, "images of one request", ge=1)
    deadline_s: float = field(120.0, "seconds one call may take with all its attempts", gt=0)
    start_deadline_s: float = field(600.0, "seconds until the job's own service must answer", gt=0)
    refresh: RefreshSection = Field(
        default_factory=RefreshSection,
        description="distil the judge again when it drifts from its teacher on the generator's newest images",
    )

    @property
    def score_weights(self) -> dict[str, float]:
        """Name of each score in metrics, tables and reports -> its weight in the reward: the D axis of a run."""
        if not self.sources:
            return self.weights
        return {f"{s.name}{OF_SOURCE}{score}": w for s in self.sources for score, w in s.weights.items()}

    @model_validator(mode="after")
    def _one_way(self) -> RewardSection:
        if not self.sources:
            return self
        if wrong := same_names([source.name for source in self.sources]):
            raise ValueError(f"reward.sources must have different names, {', '.join(wrong)} is there twice; rename one")
        own = ("judge", "function", "weights", "replicas", "cpus", "gpus", "resource", "threads", "dtype")
        fields = type(self).model_fields
        if said := [n for n in own if getattr(self, n) != fields[n].default]:
            raise ValueError(f"reward.{said[0]} is for one source, reward.sources is there; say it in its entry")
        for source in self.sources:
            if bool(source.kinds) == (self.target is not None):
                wanted = (
                    "a name and weights alone (reward.target holds it)" if self.target else "judge, clip or function"
                )
                raise ValueError(f"reward source {source.name} must have {wanted}, got {list(source.kinds) or 'none'}")
        return self

    @model_validator(mode="after")
    def _can_be_refreshed(self) -> RewardSection:
        others = ("sources", "function", "target")
        if self.refresh.enabled and (said := [name for name in others if getattr(self, name)]):
            raise ValueError(
                "reward.refresh distils the one judge of the job's own service (reward.judge), got"
                f" reward.{said[0]}; leave it out, or set reward.refresh.every_steps=0"
            )
        return self
