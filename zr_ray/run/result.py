"""The schema of `result.json`: what a finished run says about itself. Readers (the report, comparisons, CI) rely on it.

Rates and correlations are fractions, not per cent; a value that is not defined for the data (a correlation over a
constant) is null. Further keys are allowed everywhere, so that a job can add its own figures.
Left out on purpose: training curves (metrics.jsonl has them) and configuration (config.resolved.yaml).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Rate = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]
RateInterval = tuple[Rate, Rate]
CorrelationInterval = tuple[Correlation, Correlation]


TEACHER_ROW = "teacher, reasoning"
"""Method of the row that a run gives its teacher."""


def sampled_row(method: str) -> str:
    """Method of the row with sampled traces beside that of `method` (`evaluation.sampled`)."""
    return f"{method}, sampled traces"


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Agreement(_Open):
    """How well one judge agrees with the human scores, in one dimension or pooled over all (method section 6)."""

    hpa: Rate | None = Field(
        description="share of untied same-prompt pairs ranked as the annotators do; a predicted tie is wrong"
    )
    hpa_ci: RateInterval | None = Field(None, description="bootstrap 95 % interval, resampling prompts: [low, high]")
    margin_hpa: Rate | None = Field(
        description="HPA over pairs whose human scores differ by more than an eighth of the scale (0.5 of 1 to 5)"
    )
    margin_hpa_ci: RateInterval | None = Field(None, description="bootstrap 95 % interval")
    plcc: Correlation | None = Field(description="Pearson correlation of mu with the aggregated human score")
    plcc_ci: CorrelationInterval | None = Field(None, description="bootstrap 95 % interval")
    srcc: Correlation | None = Field(description="Spearman rank correlation of the same")
    items: int | None = Field(None, ge=0, description="scored images (times dimensions when pooled)")
    pairs: int | None = Field(None, ge=0, description="same-prompt pairs with untied human scores")
    undefined: str | None = Field(None, description="why there are no correlations, null if there are")


class Scores(_Open):
    """Pooled and per dimension."""

    pooled: Agreement
    dimensions: dict[str, Agreement] = Field(description="dimension name -> agreement")


class Reliability(_Open):
    """One reliability curve: questions binned by mu."""

    predicted: list[float] = Field(description="mean mu of each bin, rubric points")
    human: list[float] = Field(description="mean human score of each bin, rubric points")
    count: list[int] = Field(description="questions in each bin")


class Row(Scores):
    """One method on the evaluation split."""

    method: str = Field(description="for example zero-shot, gdso")
    tokens_per_score: float | None = Field(None, ge=0, description="generated tokens per judged question")
    malformed_frac: Rate | None = Field(None, description="outputs without a score, as a fraction")
    reliability: dict[str, Reliability] = Field(default_factory=dict, description="dimension -> reliability curve")


class RunResult(_Open):
    """What every job writes; a generator's job adds keys of its own."""

    job: str
    run_id: str
    status: Literal["SUCCEEDED", "FAILED", "STOPPED"]
    wall_s: float = Field(
        ge=0, description="seconds from the first line of the job log to the result, all attempts together"
    )


class Result(RunResult):
    """What a job that judges writes. The first row is the baseline that the report takes its differences from."""

    rows: list[Row] = Field(min_length=1)
    noise_ceiling: Scores | None = Field(
        None, description="what a judge that knows the true score would get; null when unknown"
    )


PAIR_KEYS = ("hpa", "margin_hpa", "tie_accuracy", "win_ece", "win_ece_votes", "flips")
"""Keys of an agreement that are made of same-prompt pairs."""
CORRELATION_KEYS = ("plcc", "srcc", "krcc", "plcc_logistic")


def undefined_text(agreement: dict, key: str) -> str:
    """What tables, logs and cards show for a value that is null: `no pairs`, why a correlation is not defined, or `-`
    where nothing was measured."""
    if key in PAIR_KEYS and key in agreement:
        return "no pairs"
    return (agreement.get("undefined") if key in CORRELATION_KEYS else None) or "-"


def value_text(agreement: dict, key: str, scale: float = 1) -> str:
    """A value of an agreement: three digits behind the point, one where it is scaled to per cent, or
    `undefined_text`."""
    value = agreement.get(key)
    return undefined_text(agreement, key) if value is None else f"{value * scale:.{1 if scale == 100 else 3}f}"


def check_result(result: dict) -> None:
    """Raises ValueError naming the first keys that break the schema."""
    try:
        (Result if "rows" in result else RunResult).model_validate(result)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {p['input']!r:.80}" for p in error.errors()[:5]]
        raise ValueError(f"result.json breaks its schema (zr_ray/run/result.py): {'; '.join(problems)}") from None
