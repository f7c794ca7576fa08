"""The nouns of judging: a declared contrast, how to judge, and a finding.

The difference of a contrast is candidate minus baseline in raw units of the metric. The verdict is decided on
the *oriented* interval: the sign is turned where smaller is better, so that larger always means improvement.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from finetrial.records import Config

Verdict = Literal["CONFIRMED", "FAILED", "INCONCLUSIVE", "INVALID"]


class Contrast(Config):
    """`[[contrasts]]`: one declared comparison.

    With `minus_suite` it is a difference in differences: (candidate - baseline) on `suite` minus the same on
    `minus_suite`. The baseline may be the frozen base (`base`), which has no seeds.
    """

    name: str = Field(default="", description="default: `candidate vs baseline on suite`")
    question: str = Field(default="", description="what the contrast answers, in words")
    candidate: str = Field(description="condition whose merit is claimed")
    baseline: str = Field(description="condition it is compared with; `base` is the frozen base")
    suite: str = Field(description="evaluation set")
    minus_suite: str | None = Field(default=None, description="second evaluation set, for a difference in differences")
    metric: str | None = Field(default=None, description="default: the campaign's primary metric")
    better: Literal["higher", "lower"] | None = Field(default=None, description="default: what is known of the metric")
    margin: float | None = Field(
        default=None, ge=0, description="smallest effect to act on; default: the analysis table's"
    )
    family: str = Field(default="declared", description="contrasts of one family share the error rate")


class VarianceConfig(Config):
    """`[analysis.variance]`: what is known of the noise before anything was run, as standard deviations.

    Used by `plan` and `check` alone, until outcomes of an earlier launch can tell. No verdict rests on it.
    """

    seed_sd: float = Field(gt=0, description="between runs of one recipe, in units of the metric")
    recipe_item_sd: float = Field(default=0.0, ge=0, description="between items, of the difference of two recipes")
    seed_item_sd: float = Field(default=0.0, ge=0, description="of seed × item")
    sampling_sd: float = Field(default=0.0, ge=0, description="between samples of one item")


@dataclass(frozen=True)
class Axis:
    """One aim: a metric on one suite, or on several of which the worst counts."""

    metric: str
    suites: tuple[str, ...]


class Tradeoff(Config):
    """`[[analysis.tradeoffs]]`: two aims that pull against each other, and where every condition stands between them.

    Each aim is `"suite:metric"`, or a list of them on one metric: then a condition stands where its worst suite is. A
    new task against kept skills is `x = "new:nll"`, `y = ["old:acc", "older:acc"]`; quality against diversity is
    `x = "replies:correct"`, `y = "replies:distinct_2"`. It describes, and decides no verdict.
    """

    title: str = Field(default="", description="default: `x against y`")
    x: tuple[str, ...] = Field(min_length=1, description="`suite:metric`, or a list of them on one metric")
    y: tuple[str, ...] = Field(min_length=1, description="as `x`")
    baseline: str = Field(default="base", description="condition that changes are measured against")

    @field_validator("x", "y", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("x", "y")
    @classmethod
    def _one_metric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parts = [one.rpartition(":") for one in value]
        for one, (suite, _, metric) in zip(value, parts, strict=True):
            if not suite or not metric:
                raise ValueError(f"{one!r}: expected 'suite:metric'")
        metrics = list(dict.fromkeys(metric for *_, metric in parts))
        if len(metrics) > 1:
            raise ValueError(f"an aim has one metric, because others have other units; here are {', '.join(metrics)}")
        if len(set(value)) < len(value):
            raise ValueError("a suite stands here twice")
        return value

    @property
    def x_axis(self) -> Axis:
        """The first aim."""
        return _axis(self.x)

    @property
    def y_axis(self) -> Axis:
        """The second aim."""
        return _axis(self.y)

    @property
    def name(self) -> str:
        """The title, or what it is without one."""
        return self.title or " against ".join(f"{', '.join(a.suites)} ({a.metric})" for a in (self.x_axis, self.y_axis))


def _axis(entries: tuple[str, ...]) -> Axis:
    parts = [one.rpartition(":") for one in entries]
    return Axis(parts[0][2], tuple(suite for suite, *_ in parts))


class Labels(Config):
    """`[[analysis.labels]]`: people's labels of some completions of a judged suite.

    Contrasts on it are corrected by them (`analyze.judged`) beside their verdicts, which they do not decide.
    """

    suite: str = Field(description="a suite that a judge grades")
    source: str = Field(
        min_length=1,
        description="CSV, JSONL or Parquet: a filled sheet, or outcomes (condition, seed, suite, item, sample, metric, "
        "value)",
    )


class AnalysisConfig(Config):
    """`[analysis]`: how contrasts become verdicts."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="two-sided error rate of each family")
    margin: float = Field(default=0.0, ge=0, description="smallest effect to act on, in raw units of the metric")
    correction: Literal["holm", "dunnett", "max_t", "benjamini_hochberg", "none"] = Field(
        default="holm", description="control of the error rate within a family"
    )
    pairing: Literal["seed", "none"] = Field(
        default="seed",
        description="runs of one seed number share their randomness (`seed`), or seed numbers mean nothing",
    )
    effect: float | None = Field(
        default=None, gt=0, description="improvement that is hoped for; `check` warns where it could not be confirmed"
    )
    variance: VarianceConfig | None = Field(default=None, description="what `plan` and `check` reckon power with")
    tradeoffs: tuple[Tradeoff, ...] = Field(default=(), description="pairs of aims that the report weighs")
    labels: tuple[Labels, ...] = Field(default=(), description="people's labels that judged contrasts are corrected by")


@dataclass(frozen=True)
class Finding:
    """What one contrast shows. `ci` and `p_value` are unadjusted; the verdict rests on the adjusted ones."""

    contrast: str
    question: str
    candidate: str
    baseline: str
    suite: str
    minus_suite: str | None
    metric: str
    better: str
    """`higher` or `lower`."""
    margin: float
    estimate: float | None
    """candidate - baseline in raw units; None when nothing could be estimated."""
    ci: tuple[float, float] | None
    p_value: float | None
    """Two-sided, of no difference."""
    ci_adjusted: tuple[float, float] | None
    p_adjusted: float | None
    standard_error: float | None
    df: float | None
    test: str
    unit: str
    """Unit of replication, in words."""
    n_seeds: tuple[int, int]
    """Seeds of the candidate and of the baseline (0 for the frozen base)."""
    n_items: int
    n_missing: int
    family: str
    family_size: int
    correction: str
    verdict: Verdict
    subtype: str | None
    """HARMFUL or EQUIVALENT where the verdict is FAILED, else None."""
    reason: str
    seeds_needed: int | None
    """Seeds per condition that would decide at the estimated effect and variance; None where not estimable."""
    permutation_p: float | None = None
    attainable_p: float | None = None
    """Smallest two-sided p that a permutation of these seeds can reach."""
    hedges_g: float | None = None
    variance: dict[str, float] = field(default_factory=dict)
    """Variance components: seed, item, recipe_item, interaction (residual), sampling; absent if not estimable."""
    warnings: tuple[str, ...] = ()
